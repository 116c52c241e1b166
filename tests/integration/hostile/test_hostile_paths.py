"""What a container may put in the way of a restore: nothing beyond its own mounts is opened."""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ..conftest import MakeScenario
from ..harness import kernel
from ..harness.agent import Check, Task
from ..harness.obstacles import hold_inner, instead, symlink_to
from ..harness.opened import Opened
from ..harness.placement import CONTENT, SUBDIRECTORY, Bind, Placement, populate_tree
from ..harness.programs import hold_file

pytestmark = pytest.mark.detached

# What a terminal would take for commands, and a reader of the log for other lines.
EVIL = b"new\nError (criu: 1): forged\r\x1b[2J\x07\\x\xff%s%n"


@contextmanager
def covered(path: Path, by: Path) -> Iterator[None]:
    """Bind something else over a file for a while."""
    kernel.bind(by, path)
    try:
        yield
    finally:
        kernel.umount2(path, kernel.MNT_DETACH)


def node(number: int) -> Callable[[Path], None]:
    """Makes a memory device, whose opening nobody would notice."""
    return lambda path: os.mknod(path, 0o20666, os.makedev(1, number))


def obstacles(tree: Path, secret: Path) -> Iterator[tuple[str, Any]]:
    """Everything that may be in the way, and what the error says of it."""
    inner = tree / "dir" / "inner"
    links = ["/proc/self/root" + str(secret), str(secret), "../../../../" + str(secret)]
    for target in links:
        yield "inner", instead(inner, symlink_to(target + "/inner"))
        yield "dir", instead(tree / "dir", symlink_to(target))
        yield "tree", instead(tree, symlink_to(target))
    yield "is a FIFO", instead(inner, os.mkfifo)
    yield "is a character device", instead(inner, node(3))
    yield "is device 1:5, it was 1:3", instead(tree / "null", node(5))
    yield "is another file", instead(inner, lambda path: path.write_text("inner\n"))


@pytest.mark.parametrize("placement", [Placement.HOST, Placement.NAMESPACE])
def test_on_the_way(
    scenario: MakeScenario, placement: Placement, secret: tuple[Path, Opened]
) -> None:
    """Swapped in between the checkpoint and the restore, along the recorded path."""
    held = scenario(placement, [Bind(SUBDIRECTORY)]).start(hold_inner)
    expected = held.ask()
    held.dump().succeeded()
    tree = held.ground.source / "tree"
    for error, obstacle in obstacles(tree, secret[0]):
        with obstacle:
            held.restore().failed(f"criu-detached: .*({error})")
            held.assert_gone()
    # What somebody mounts on the way is not in a clone of the source.
    with covered(tree / "dir", secret[0]), covered(tree / "null", secret[0] / "file"):
        held.restore().succeeded()
        assert held.ask() == expected
    assert secret[1].take() == set()


def test_mountpoint_behind_a_symlink(scenario: MakeScenario) -> None:
    """The way to the source itself: it is not taken, even where it leads to the right files."""
    held = scenario().start(hold_file)
    held.dump().succeeded()
    source, moved = held.ground.source, held.work / "moved"
    moved.mkdir()
    kernel.mount(str(source), moved, "", kernel.MS_MOVE)
    with instead(source, symlink_to(moved)):
        held.restore().failed("criu-detached: .*source is a symlink")
        held.assert_gone()
    kernel.mount(str(moved), source, "", kernel.MS_MOVE)
    held.restore().succeeded()
    assert held.ask() == CONTENT


def forged(records: bytes, old: bytes, new: bytes) -> bytes:
    """Records with another path of the same length, and the right checksum."""
    assert records.count(old) == 1 and len(new) <= len(old)
    body = records[:-16].replace(old, new.ljust(len(old), b"/"))  # 16: the trailer
    return body + records[-16:-4] + struct.pack("<I", zlib.crc32(body))


def test_forged_source(scenario: MakeScenario, secret: tuple[Path, Opened]) -> None:
    """Images that name a source by way of a magic link, or of `..`: nothing of it is opened."""
    held = scenario().start(hold_file)
    held.dump().succeeded()
    path = held.images / "criu-detached.img"
    records, source = path.read_bytes(), os.fsencode(held.ground.source)
    link = b"/proc/1/root" + os.fsencode(secret[0])[: len(source) - 12]
    for new, error in [
        (b"/proc/self/cwd", "symbolic links"),
        (link[: len(source)], "symbolic links"),
        (b"/tmp/../etc", "invalid path"),
        (b"/etc", "another filesystem|it was"),
    ]:
        path.write_bytes(forged(records, source, new))
        held.restore().failed(f"criu-detached: .*({error})")
        held.assert_gone()
    path.write_bytes(forged(records, b"tree/file", b"../../etc"))
    held.restore().failed("criu-detached: .*invalid path")
    held.assert_gone()
    path.write_bytes(records)
    held.restore().succeeded()
    assert held.ask() == CONTENT


def hold_evil(task: Task, name: str) -> Check:
    """A directory and files of a name that is no text; one of them deleted, one a socket's."""
    evil = os.fsencode(task.path("")) + b"/" + name.encode("latin-1")
    os.mkdir(evil)
    os.chdir(evil)
    file = os.open(name.encode("latin-1"), os.O_RDWR | os.O_CREAT)
    os.write(file, b"evil")
    deleted = os.open(b"gone" + name.encode("latin-1"), os.O_RDWR | os.O_CREAT)
    os.unlink(b"gone" + name.encode("latin-1"))
    task.detach()
    return lambda: [
        os.pread(file, 10, 0).decode(),
        os.fstat(deleted).st_nlink,
        len(os.listdir(".")),
        os.readlink(f"/proc/self/fd/{file}").encode("latin-1", "surrogateescape").decode("latin-1"),
    ]


def our_lines(log: str) -> list[str]:
    """The plugin's lines of a log."""
    return [line for line in log.split("\n") if "criu-detached: " in line]


def assert_readable(log: str) -> None:
    """A name can neither start a line of its own nor reach the terminal."""
    lines = our_lines(log)
    assert lines
    for line in lines:
        assert re.match(r"\(\d\d\.\d{6}\) ( +\d+: )?(Error |Warn  )?criu-detached: ", line), line
        assert line.isascii() and line.isprintable(), repr(line)


@pytest.mark.parametrize("placement", [Placement.HOST, Placement.NAMESPACE])
def test_names(scenario: MakeScenario, placement: Placement) -> None:
    """Restored under the names that they had; in the plugin's lines these are quoted."""
    held = scenario(placement).start(hold_evil, name=EVIL.decode("latin-1"))
    expected = held.ask()
    run = held.dump().succeeded()
    assert_readable(run.log)
    [directory] = [
        path for path in (held.ground.source / "tree").iterdir() if os.fsencode(path.name) == EVIL
    ]
    with instead(directory / directory.name, os.mkfifo):
        run = held.restore().failed(r"criu-detached: .*new\\nError .*\\x1b.*is a FIFO")
        assert_readable(run.log)
    held.assert_gone()
    held.restore().succeeded()
    assert held.ask() == expected


def hold_deep(task: Task) -> Check:
    """A deleted file that is too large, at the end of a path that fills pages."""
    os.chdir(task.path())
    for _ in range(15):
        os.mkdir("\n" * 200)
        os.chdir("\n" * 200)
    fd = os.open("file", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"x" * (2 << 20))
    os.unlink("file")
    os.chdir("/")
    task.detach()
    return lambda: os.fstat(fd).st_size


def test_long_name(scenario: MakeScenario) -> None:
    """What is wrong, and what to do, stands in the line however long the name is."""
    held = scenario().start(hold_deep)
    run = held.dump().failed(r"criu-detached: can't dump /tree.*\\n\\n.*\.\.\..*ghost-limit")
    assert_readable(run.log)
    assert held.ask() == 2 << 20


def with_setuid(source: Path) -> None:
    """Programs that would give privileges."""
    populate_tree(source)
    for name, mode in {"setuid": 0o104755, "setgid": 0o102755}.items():
        (source / "tree" / name).write_text("program\n")
        (source / "tree" / name).chmod(mode & 0o7777)


def hold_setuid(task: Task) -> Check:
    """Programs that change the user, on a mount where they do not."""
    fds = [os.open(task.path(name), os.O_RDONLY) for name in ("setuid", "setgid")]
    os.unlink(task.path("setgid"))
    task.detach()
    return lambda: [
        [oct(os.fstat(fd).st_mode), os.fstatvfs(fd).f_flag & (os.ST_NOSUID | os.ST_NODEV)]
        for fd in fds
    ]


@pytest.mark.parametrize("placement", [Placement.NAMESPACE, Placement.HOST_SOURCE])
def test_setuid(scenario: MakeScenario, placement: Placement) -> None:
    """A mount that was nosuid is so again, whatever its source is by then."""
    flags = kernel.MS_NOSUID | kernel.MS_NODEV
    held = scenario(placement, [Bind(flags=flags)], populate=with_setuid).start(hold_setuid)
    expected = held.ask()
    assert [flag for _, flag in expected] == [os.ST_NOSUID | os.ST_NODEV] * 2
    held.dump().succeeded()
    held.restore().succeeded()
    assert held.ask() == expected
