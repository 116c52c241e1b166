"""Filesystems in memory that cannot come back: a clear line, and nothing half-made stays."""

from __future__ import annotations

import os
import stat
import subprocess
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from .. import disks
from ..conftest import MakeScenario
from ..harness import kernel, look
from ..harness.agent import Check, Task
from ..harness.placement import CONTENT, Placement, populate_tree
from ..harness.scenario import DEADLINE, Scenario
from ..hostile.test_faults import small_disk
from ..soleheld import sole

pytestmark = pytest.mark.detached


def hold_top(task: Task) -> Check:
    """The top of the tree."""
    top = os.open(task.path(), os.O_RDONLY)
    task.detach()
    return lambda: sorted(os.listdir(top))


def hold_deleted(task: Task) -> Check:
    """A file that has no name any more, and one that has."""
    fds = [os.open(task.path(name), os.O_RDWR) for name in ("file", "other")]
    os.unlink(task.path("other"))
    task.detach()
    return lambda: [os.pread(fd, 100, 0).decode() for fd in fds]


# --- Others who hold it ---------------------------------------------------------------------

# A process of the host that holds something of the directory which it is given.
HOLD = "import mmap, os, sys; os.chdir(sys.argv[1]); {}; print(flush=True); sys.stdin.read()"
HOLDERS = {
    "fd": "fd = os.open('file', 0); os.chdir('/')",
    "cwd": "pass",
    "socket": "import socket; s = socket.socket(1); s.bind('socket'); os.chdir('/')",
    "root": "os.chroot('.')",
    "thread": "import threading; e = threading.Event(); t = lambda: (os.unshare(0x200), e.set(), "
    "threading.Event().wait()); threading.Thread(target=t, daemon=True).start(); e.wait(); "
    "os.chdir('/')",
    "mapping": "fd = os.open('file', 0); m = mmap.mmap(fd, 4, prot=1, **{'trackfd': False}); "
    "os.close(fd); os.chdir('/')",
}


@contextmanager
def holder(code: str, directory: Path) -> Iterator[str]:
    """A process that holds something there; what the refusal calls it."""
    command = ["python3", "-c", HOLD.format(code), str(directory)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as running:
        assert running.stdout is not None and running.stdout.readline()
        yield f"process {running.pid}"


@contextmanager
def loop(directory: Path) -> Iterator[str]:
    """A block device whose content is a file there."""
    image = directory / directory.parents[1].name
    image.write_bytes(bytes(1 << 16))
    with disks.loop_device(image) as device:
        yield f"loop device {Path(device).name}"
        subprocess.run(["losetup", "--detach", device], check=True)  # its file has no name by now
    backing = Path("/sys/block", Path(device).name, "loop/backing_file")
    deadline = time.monotonic() + DEADLINE
    with suppress(OSError):  # it is gone
        while image.name in backing.read_text():  # somebody has the device open, to look at it
            assert time.monotonic() < deadline, f"{device} stays"


@contextmanager
def overlay(directory: Path, layer: str) -> Iterator[str]:
    """An overlay with a layer there."""
    (directory / "work").mkdir()
    other = directory.parent.parent / "layer"
    options = {
        "lower": f"lowerdir={directory},upperdir={other}/upper,workdir={other}/work",
        "upper": f"lowerdir={other},upperdir={directory}/dir,workdir={directory}/work",
    }
    with mounted_overlay(other, options[layer]) as point:
        yield f"the overlay at {point}"


@contextmanager
def overlay_of_root(directory: Path) -> Iterator[str]:
    """One over its root: something is there still when it is unmounted, the mountpoint."""
    other = directory.parent.parent / "layer"
    options = f"lowerdir={directory.parent},upperdir={other}/upper,workdir={other}/work"
    with mounted_overlay(other, options) as point:
        yield f"the overlay at {point}"


@contextmanager
def overlay_of_two(directory: Path) -> Iterator[str]:
    """One over it, with the first directory of another tmpfs as upper directory.

    That has the inode number which the root of an overlay of several filesystems has as well.
    """
    other = directory.parent.parent / "layer"
    other.mkdir()
    kernel.mount("other", other, "tmpfs")
    try:
        with overlay(directory, "lower") as who:
            yield who
    finally:
        kernel.umount2(other)


@contextmanager
def mounted_overlay(layer: Path, options: str) -> Iterator[Path]:
    """An overlay, with directories that are made for it and may be layers."""
    point = layer.with_name("overlay")
    for directory in (point, layer, layer / "upper", layer / "work"):
        directory.mkdir(exist_ok=True)
    try:
        kernel.mount("overlay", point, "overlay", 0, options)
    except OSError as error:
        pytest.skip(f"this kernel mounts no overlay: {error}")
    try:
        yield point
    finally:
        kernel.umount2(point)


@contextmanager
def other_namespace(directory: Path) -> Iterator[str]:
    """A mount namespace that still has it mounted, while the runner's has not."""
    code = "pass; os.chdir('/')"
    command = ["unshare", "--mount", "python3", "-c", HOLD.format(code), str(directory)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as running:
        assert running.stdout is not None and running.stdout.readline()
        yield f"in the mount namespace of process {running.pid}"


HOLDING: dict[str, Callable[[Path], AbstractContextManager[str]]] = {
    **{name: partial(holder, code) for name, code in HOLDERS.items()},
    "loop": loop,
    "overlay of it": lambda path: overlay(path, "lower"),
    "overlay on it": lambda path: overlay(path, "upper"),
    "overlay of its root": overlay_of_root,
    "overlay of it and another": overlay_of_two,
    "namespace": other_namespace,
}


def test_images_on_it(scenario: MakeScenario) -> None:
    """criu itself is no holder that stays: the images would go with the last process."""
    held = scenario().start(hold_top)
    images = held.ground.source / "tree" / "images"
    images.mkdir()
    inside = f"/proc/{held.pid}/fd/3/images"
    sole(held)
    run = held.dump("--images-dir", inside, "--log-file", str(held.work / "log"))
    assert run.status and "the image directory is on it" in (held.work / "log").read_text()
    assert held.ask() == ["dir", "fifo", "file", "images", "link", "null", "other", "zero"]


@pytest.mark.parametrize("kind", HOLDING)
def test_held_elsewhere(scenario: MakeScenario, kind: str) -> None:
    """With two of it the data would part; the refusal says who it is."""
    held = scenario().start(hold_deleted)
    answer = held.ask()
    with HOLDING[kind](held.ground.source / "tree") as who:
        sole(held)
        held.dump().failed(f"criu-detached: .*{who}")
        assert held.ask() == answer
    held.cycle()
    assert held.ask() == answer


def test_overlay_of_a_lost_layer(scenario: MakeScenario, tmp_path: Path) -> None:
    """A lower layer is a mount that is gone since, as podman's with mapped ids.

    But all of the overlay is of one filesystem, and that is another one.
    """
    held = sole(scenario().start(hold_deleted))
    answer = held.ask()
    layer, lower, lost = tmp_path / "layer", tmp_path / "lower", tmp_path / "lost"
    for directory in (lower, lost):
        directory.mkdir()
    kernel.bind(lower, lost)
    options = f"lowerdir={lost},upperdir={layer}/upper,workdir={layer}/work"
    with mounted_overlay(layer, options):
        kernel.umount2(lost)
        lost.rmdir()
        held.cycle()
    assert held.ask() == answer


def test_overlay_of_covered_layers(scenario: MakeScenario) -> None:
    """Where the layers of an overlay were other directories are by now."""
    held = scenario().start(hold_deleted)
    answer = held.ask()
    tree = held.ground.source / "tree"
    with overlay(tree, "upper") as who:
        sole(held)
        for name in ("dir", "work"):
            (tree / name).mkdir(parents=True)
        held.dump().failed(f"criu-detached: .*{who}")
        assert held.ask() == answer
    held.cycle()
    assert held.ask() == answer


def test_overlay_in_a_namespace_without_a_process(scenario: MakeScenario, tmp_path: Path) -> None:
    """An open file keeps the namespace, and that the overlay."""
    if not kernel.walks_namespaces():
        pytest.skip("the kernel (before 6.12) shows no such namespace")
    held = scenario().start(hold_deleted)
    answer = held.ask()
    tree, point = held.ground.source / "tree", tmp_path / "overlay"
    for name in ("upper", "work", "overlay"):
        (tmp_path / name).mkdir()
    options = f"lowerdir={tree},upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    script = 'mount -t overlay -o "$1" none "$2" && umount --lazy "$3" && echo made && cat'
    arguments = [options, str(point), str(held.ground.source)]
    command = ["unshare", "--mount", "sh", "-c", script, "sh", *arguments]
    pipe = subprocess.PIPE
    with ExitStack() as stack:
        with subprocess.Popen(command, stdin=pipe, stdout=pipe) as running:
            assert running.stdout is not None and running.stdout.readline() == b"made\n"
            fd = os.open(f"/proc/{running.pid}/ns/mnt", os.O_RDONLY)
            stack.callback(os.close, fd)
        sole(held).dump().failed(f"criu-detached: .*{point} in mount namespace .* no process")
        assert held.ask() == answer
    held.cycle()
    assert held.ask() == answer


# --- Faults at dump ---------------------------------------------------------------------------


def populate_large(source: Path) -> None:
    """The common tree and a file of a mebibyte."""
    populate_tree(source)
    (source / "tree" / "large").write_bytes(os.urandom(1 << 20))


def test_image_directory_full(scenario: MakeScenario) -> None:
    """The dump fails while it can, and the process goes on."""
    held = sole(scenario(populate=populate_large).start(hold_top))
    before, answer = look.seen(held.pid), held.ask()
    held.dump("--leave-running").succeeded()
    size = sum(path.stat().st_blocks * 512 for path in held.images.glob("*.img"))
    for limit in (size // 2, size - (1 << 19), size - (3 << 12)):
        with small_disk(held.work / "small", f"size={limit}") as options:
            run = held.dump(*options)
            assert run.status, run.report()
        assert "No space left on device" in "\n".join(run.errors()), run.report()
        assert look.seen(held.pid) == before
        assert held.ask() == answer
    held.cycle()
    assert held.ask() == answer


# --- Faults at restore ------------------------------------------------------------------------


class State:
    """What a restore that failed must leave as it was."""

    def __init__(self, held: Scenario) -> None:
        self._held = held
        self._before = self._seen()

    def _seen(self) -> list[object]:
        names = sorted(
            str(path) for path in self._held.work.rglob("*") if "images" not in str(path)
        )
        return [look.mount_table(), names]

    def assert_as_before(self) -> None:
        """No task, no mount, no file."""
        self._held.assert_gone()
        assert self._seen() == self._before


def test_every_cut(scenario: MakeScenario) -> None:
    """Images that are cut off, or lost, are found out before there is a task."""
    held = sole(scenario(populate=populate_large).start(hold_top))
    answer = held.ask()
    held.dump().succeeded()
    state = State(held)
    for name in ("criu-detached.img", "criu-detached-data.img"):
        image = held.images / name
        whole = image.read_bytes()
        for length in (0, 4, 8, len(whole) // 2, len(whole) - 1):
            image.write_bytes(whole[:length])
            held.restore().failed(f"criu-detached: .*{name} is damaged")
            state.assert_as_before()
        image.unlink()
        held.restore().failed(f"criu-detached: .*{name}")
        state.assert_as_before()
        image.write_bytes(whole)
    held.restore().succeeded()
    assert held.ask() == answer


def varint(number: int) -> bytes:
    """A number as protobuf has it."""
    out = b""
    while number >= 0x80:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


class Images:
    """The record file, into which other entries can be put."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "criu-detached.img"
        raw = self._path.read_bytes()
        self._entries, at = [], 8
        while at < len(raw):
            size = int.from_bytes(raw[at : at + 4], "little")
            self._entries.append(raw[at + 4 : at + 4 + size])
            at += 4 + size
        self._entries.pop()  # the trailer
        self._magics = raw[:8]

    def write(self, *more: bytes, replace: tuple[bytes, bytes] = (b"", b"")) -> None:
        """Write the file with further entries, or with bytes of equal length in others' place."""
        assert any(replace[0] in entry for entry in self._entries)
        entries = [entry.replace(*replace) if replace[0] else entry for entry in self._entries]
        entries += more
        body = self._magics + b"".join(len(e).to_bytes(4, "little") + e for e in entries)
        trailer = b"\x0d" + len(entries).to_bytes(4, "little")
        trailer += b"\x15" + zlib.crc32(body).to_bytes(4, "little")
        trailer = b"\x7a" + varint(len(trailer)) + trailer
        self._path.write_bytes(body + len(trailer).to_bytes(4, "little") + trailer)


def field(number: int, value: int | bytes) -> bytes:
    """A field as protobuf has it."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def node(path: bytes, mode: int, *, target: bytes = b"", same_as: bytes = b"") -> bytes:
    """An entry with a Node of the first filesystem."""
    inode = field(6, target) if target else field(1, 1000)
    parts = [field(1, 1), field(2, path), field(3, mode)]
    parts.append(field(6, same_as) if same_as else field(5, inode))
    return field(8, b"".join(parts))


FILE, LINK = stat.S_IFREG | 0o644, stat.S_IFLNK | 0o777
EVIL = "/var/tmp/evil"  # noqa: S108
HOSTILE = {
    "above": [node(b"../evil", FILE)],
    "absolute": [node(b"/evil", FILE)],
    "inner dots": [node(b"tree/../../evil", FILE)],
    "zero byte": [node(b"ev\0il", FILE)],
    "below a symlink": [node(b"way", LINK, target=b"/var/tmp"), node(b"way/evil", FILE)],
    "below a symlink to above": [node(b"way", LINK, target=b".."), node(b"way/evil", FILE)],
    "link to above": [node(b"evil", FILE, same_as=b"../../etc/passwd")],
    "link through a symlink": [
        node(b"way", LINK, target=b"/etc"),
        node(b"evil", FILE, same_as=b"way/passwd"),
    ],
    "link to nothing": [node(b"evil", FILE, same_as=b"nothing")],
    "twice": [node(b"evil", FILE), node(b"evil", FILE)],
    "below a file": [node(b"evil", FILE), node(b"evil/evil", FILE)],
    "root that is a file": [node(b".", FILE)],
    "no type": [node(b"evil", 0o644)],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_nodes(scenario: MakeScenario, name: str) -> None:
    """Records that no dump writes end the restore, and nothing is made outside."""
    held = sole(scenario().start(hold_top))
    held.dump().succeeded()
    state = State(held)
    Images(held.images).write(*HOSTILE[name])
    held.restore().failed("criu-detached: ")
    state.assert_as_before()
    assert not os.path.exists(EVIL)


@pytest.mark.parametrize("limit", ["size", "nr_inodes"])
def test_too_small(scenario: MakeScenario, limit: str) -> None:
    """The limit of the record is lower than what is in the filesystem."""

    def mount_sized(source: Path) -> None:
        kernel.mount("sized", source, "tmpfs", 0, "size=2048k,nr_inodes=50")

    held = sole(scenario(mount_source=mount_sized, populate=populate_large).start(hold_top))
    answer = held.ask()
    held.dump().succeeded()
    state = State(held)
    images = Images(held.images)
    change = b"nr_inodes=50", b"nr_inodes=05"
    if limit == "size":
        told = kernel.has_statmount_by_fd()
        change = (b"size=2048k", b"size=1016k") if told else (b"=2097152", b"=1040384")
    images.write(replace=change)
    held.restore().failed("criu-detached: .*can't make a tmpfs as it was")
    state.assert_as_before()
    images.write()
    held.restore().succeeded()
    assert held.ask() == answer


# --- Filesystems and mounts that cannot be told ----------------------------------------------


def mount_ramfs(source: Path) -> None:
    """It has neither limits nor file handles."""
    kernel.mount("source", source, "ramfs")


@pytest.mark.parametrize(
    "placement", [Placement.HOST, Placement.NAMESPACE, Placement.HOST_SOURCE], ids=str
)
def test_ramfs(scenario: MakeScenario, placement: Placement) -> None:
    held = scenario(placement, mount_source=mount_ramfs)
    held.start(hold_top)
    answer = held.ask()
    sole(held).cycle()
    assert held.ask() == answer
    with ExitStack() as stack:
        fd = os.open(f"/proc/{held.pid}/fd/3", os.O_RDONLY)
        stack.callback(os.close, fd)
        assert os.fstatvfs(fd).f_blocks == 0
        found = os.open("file", os.O_RDONLY, dir_fd=fd)
        stack.callback(os.close, found)
        assert os.read(found, 100).decode() == CONTENT
