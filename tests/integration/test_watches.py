"""Watches on files of a detached mount: they are of inodes, which CRIU looks for by itself."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from . import disks
from .conftest import MakeScenario
from .harness.agent import Check, Task
from .harness.placement import Placement
from .harness.program import Program
from .harness.scenario import Scenario

IN_MODIFY, IN_CREATE, IN_NONBLOCK = 0x2, 0x100, 0o4000
FAN_NONBLOCK, FAN_MODIFY, FAN_EVENT_ON_CHILD = 0x2, 0x2, 0x08000000
FAN_MARK_ADD, FAN_MARK_MOUNT, FAN_MARK_FILESYSTEM = 0x1, 0x10, 0x100


def call(name: str, *arguments: object) -> int:
    """Call a function of libc."""
    import ctypes  # the fd of libffi that it leaves open does no harm here

    libc = ctypes.CDLL(None, use_errno=True)
    result = int(getattr(libc, name)(*arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result


def fanotify_mark(fd: int, flags: int, mask: int, path: str) -> None:
    """fanotify_mark(2), whose mask has 64 bits."""
    import ctypes

    call("fanotify_mark", fd, flags, ctypes.c_uint64(mask), -100, os.fsencode(path))


def read_events(fd: int) -> bytes:
    """All events that came since the last time."""
    try:
        return os.read(fd, 65536)
    except BlockingIOError:
        return b""


def hold_inotify(task: Task) -> Check:
    """A file and a directory, both held and watched."""
    file = os.open(task.path("file"), os.O_WRONLY | os.O_APPEND)
    directory = os.open(task.path("dir"), os.O_RDONLY)
    inotify = call("inotify_init1", IN_NONBLOCK)
    call("inotify_add_watch", inotify, os.fsencode(task.path("file")), IN_MODIFY)
    call("inotify_add_watch", inotify, os.fsencode(task.path("dir")), IN_CREATE)
    task.detach()

    def events() -> list[object]:
        raw, found = read_events(inotify), list[object]()
        while raw:
            watch, mask, _, size = struct.unpack_from("iIII", raw)
            found.append([watch, mask, raw[16 : 16 + size].rstrip(b"\0").decode()])
            raw = raw[16 + size :]
        return found

    def check() -> list[object]:
        others = events()
        os.write(file, b"x")
        os.close(os.open("own", os.O_CREAT | os.O_EXCL, dir_fd=directory))
        os.unlink("own", dir_fd=directory)
        return [others, events()]

    return check


def change_through_source(held: Scenario) -> None:
    """What is done to the files elsewhere shows on the detached mount's watches too."""
    tree = held.ground.source / "tree"
    with (tree / "file").open("a") as file:
        file.write("x")
    (tree / "dir" / "others").touch()


@pytest.mark.covers("inotify")
def test_inotify(scenario: MakeScenario, placement: Placement) -> None:
    held = scenario(placement).start(hold_inotify).cycle()
    change_through_source(held)
    assert held.ask() == [
        [[1, IN_MODIFY, ""], [2, IN_CREATE, "others"]],
        [[1, IN_MODIFY, ""], [2, IN_CREATE, "own"]],
    ]
    held.cycle()
    assert held.ask()[1] == [[1, IN_MODIFY, ""], [2, IN_CREATE, "own"]]


def hold_fanotify(task: Task) -> Check:
    """A file and a directory, both held, and marked for what is written there."""
    file = os.open(task.path("file"), os.O_WRONLY | os.O_APPEND)
    inner = os.open(task.path("dir/inner"), os.O_WRONLY | os.O_APPEND)
    fanotify = call("fanotify_init", FAN_NONBLOCK, os.O_RDONLY)
    fanotify_mark(fanotify, FAN_MARK_ADD, FAN_MODIFY, task.path("file"))
    fanotify_mark(fanotify, FAN_MARK_ADD, FAN_MODIFY | FAN_EVENT_ON_CHILD, task.path("dir"))
    task.detach()

    def events() -> list[object]:
        raw, found = read_events(fanotify), list[object]()
        while raw:
            size, mask, fd = struct.unpack_from("I4xQi", raw)
            found.append([mask, os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))])
            os.close(fd)
            raw = raw[size:]
        return found

    def check() -> list[object]:
        others = events()
        os.write(file, b"x")
        os.write(inner, b"x")
        return [others, events()]

    return check


@pytest.mark.covers("fanotify")
def test_fanotify(scenario: MakeScenario, placement: Placement) -> None:
    held = scenario(placement).start(hold_fanotify).cycle()
    change_through_source(held)
    assert held.ask() == [[[FAN_MODIFY, "file"]], [[FAN_MODIFY, "file"], [FAN_MODIFY, "inner"]]]


def test_source_of_namespace(scenario: MakeScenario) -> None:
    """CRIU finds the inodes where the source is a mount that it dumps itself."""
    for program in (hold_inotify, hold_fanotify):
        held = scenario(Placement.NAMESPACE_TMPFS).start(program).cycle()
        others, own = held.ask()
        assert (others, len(own)) == ([], 2)


@pytest.mark.detached
@pytest.mark.covers("inotify", "fanotify", outcome="refused")
@pytest.mark.parametrize("program", [hold_inotify, hold_fanotify], ids=lambda p: p.__name__)
def test_source_on_host_alone(scenario: MakeScenario, program: Program) -> None:
    """CRIU searches the dumped mounts for the inode, and it is on none of them."""
    held = scenario(Placement.HOST_SOURCE).start(program)
    held.dump().failed("Can't dump that handle")
    change_through_source(held)
    others, own = held.ask()
    assert (len(others) > 0, len(own)) == (True, 2)


def hold_mount_mark(task: Task, kind: int) -> Check:
    """A mark on the mount itself or on its filesystem."""
    file = os.open(task.path("file"), os.O_WRONLY | os.O_APPEND)
    fanotify = call("fanotify_init", FAN_NONBLOCK, os.O_RDONLY)
    fanotify_mark(fanotify, FAN_MARK_ADD | kind, FAN_MODIFY, task.path())
    task.detach()

    def check() -> bool:
        os.write(file, b"x")
        return bool(read_events(fanotify))

    return check


@pytest.mark.detached
def test_mark_on_the_mount(scenario: MakeScenario, placement: Placement) -> None:
    """CRIU finds the mount of a mark by its id alone, and it knows attached mounts only."""
    held = scenario(placement).start(hold_mount_mark, kind=FAN_MARK_MOUNT)
    held.dump().failed("Can't find mnt_id")
    assert held.ask() is True


@pytest.mark.plain
def test_mark_on_the_mount_attached(scenario: MakeScenario, placement: Placement) -> None:
    held = scenario(placement, attached=True).start(hold_mount_mark, kind=FAN_MARK_MOUNT)
    held.cycle(plugin=False)
    assert held.ask() is True


@pytest.mark.plain
def test_mark_on_the_filesystem_attached(scenario: MakeScenario) -> None:
    """CRIU knows no marks on filesystems: it loses them, and says nothing."""
    held = scenario(attached=True).start(hold_mount_mark, kind=FAN_MARK_FILESYSTEM)
    assert held.ask() is True
    held.cycle(plugin=False)
    assert held.ask() is False


@pytest.fixture
def mount_ext4(tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """Mounts a fresh ext4, of whose inodes a deleted one can still be found by its handle."""
    with disks.disk(tmp_path, "ext4") as disk:
        yield disk.mount


def hold_deleted(task: Task) -> Check:
    """A deleted file that is held and watched."""
    file = os.open(task.path("file"), os.O_WRONLY | os.O_APPEND)
    inotify = call("inotify_init1", IN_NONBLOCK)
    call("inotify_add_watch", inotify, os.fsencode(task.path("file")), IN_MODIFY)
    os.unlink(task.path("file"))
    task.detach()

    def check() -> bool:
        os.write(file, b"x")
        return bool(read_events(inotify))

    return check


def test_deleted_on_ext4(
    scenario: MakeScenario, placement: Placement, mount_ext4: Callable[[Path], None]
) -> None:
    """It comes back with the file, or is refused while the process lives."""
    held = scenario(placement, mount_source=mount_ext4).start(hold_deleted)
    run = held.dump()
    if run.status:
        run.failed("criu-detached: ")
    else:
        held.restore().succeeded()
    assert held.ask() is True


@pytest.mark.plain
def test_deleted_on_tmpfs_attached(scenario: MakeScenario) -> None:
    """CRIU itself refuses there."""
    held = scenario(attached=True).start(hold_deleted)
    held.dump(plugin=False).failed("Can't find suitable path for handle")
    assert held.ask() is True


@pytest.mark.detached
def test_deleted_on_tmpfs(scenario: MakeScenario, placement: Placement) -> None:
    held = scenario(placement).start(hold_deleted)
    held.dump().failed("Can't find suitable path for handle|criu-detached: ")
    assert held.ask() is True
