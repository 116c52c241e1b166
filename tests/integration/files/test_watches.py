"""Watches on files of a detached mount: they are of inodes, which CRIU looks for by itself."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .. import disks
from ..conftest import MakeScenario
from ..criu.test_modes import require_dirty_tracking
from ..harness.agent import Check, Task
from ..harness.criu import criu, default_plugins
from ..harness.placement import Placement
from ..harness.program import Program
from ..harness.scenario import Scenario
from ..soleheld import sole
from .test_locks import cycle_with_locks

IN_MODIFY, IN_OPEN, IN_CREATE = 0x2, 0x20, 0x100
IN_DONT_FOLLOW, IN_NONBLOCK = 0x2000000, 0o4000
FAN_NONBLOCK, FAN_MODIFY, FAN_EVENT_ON_CHILD = 0x2, 0x2, 0x08000000
FAN_MARK_ADD, FAN_MARK_MOUNT, FAN_MARK_FILESYSTEM = 0x1, 0x10, 0x100


@pytest.fixture
def mount_ext4(tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """Mounts a fresh ext4, of whose inodes a deleted one can still be found by its handle."""
    with disks.disk(tmp_path, "ext4") as disk:
        yield disk.mount


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


def watch(path: str, mask: int, inotify: int = -1) -> int:
    """Watch a file; returns the inotify fd."""
    if inotify < 0:
        inotify = call("inotify_init1", IN_NONBLOCK)
    call("inotify_add_watch", inotify, os.fsencode(path), mask)
    return inotify


def inotify_events(inotify: int) -> list[object]:
    """Number of the watch, mask and name of each event."""
    raw, found = read_events(inotify), list[object]()
    while raw:
        number, mask, _, size = struct.unpack_from("iIII", raw)
        found.append([number, mask, raw[16 : 16 + size].rstrip(b"\0").decode()])
        raw = raw[16 + size :]
    return found


def fanotify_events(fanotify: int) -> list[object]:
    """Mask and name of each event."""
    raw, found = read_events(fanotify), list[object]()
    while raw:
        size, mask, fd = struct.unpack_from("I4xQi", raw)
        found.append([mask, os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))])
        os.close(fd)
        raw = raw[size:]
    return found


def hold_watches(task: Task) -> Check:
    """A file and a directory, both held, and watched for some changes by both means."""
    file = os.open(task.path("file"), os.O_WRONLY | os.O_APPEND)
    inner = os.open(task.path("dir/inner"), os.O_WRONLY | os.O_APPEND)
    directory = os.open(task.path("dir"), os.O_RDONLY)
    inotify = watch(task.path("file"), IN_MODIFY)
    watch(task.path("dir"), IN_CREATE, inotify)
    fanotify = call("fanotify_init", FAN_NONBLOCK, os.O_RDONLY)
    fanotify_mark(fanotify, FAN_MARK_ADD, FAN_MODIFY, task.path("file"))
    fanotify_mark(fanotify, FAN_MARK_ADD, FAN_MODIFY | FAN_EVENT_ON_CHILD, task.path("dir"))
    task.detach()

    def events() -> list[object]:
        return [inotify_events(inotify), fanotify_events(fanotify)]

    def check() -> list[object]:
        others = events()
        os.write(file, b"x")
        os.write(inner, b"x")
        os.close(os.open("own", os.O_CREAT | os.O_EXCL, dir_fd=directory))
        os.unlink("own", dir_fd=directory)
        return [others, events()]

    return check


# What a check of hold_watches does itself, and what is done through the bind source.
OWN = [
    [[1, IN_MODIFY, ""], [2, IN_CREATE, "own"]],
    [[FAN_MODIFY, "file"], [FAN_MODIFY, "inner"]],
]
OTHERS = [[[1, IN_MODIFY, ""], [2, IN_CREATE, "others"]], [[FAN_MODIFY, "file"]]]
NOTHING: list[object] = [[], []]


def change_through_source(held: Scenario) -> None:
    """What is done to the files elsewhere shows on the detached mount's watches too."""
    tree = held.ground.source / "tree"
    with (tree / "file").open("a") as file:
        file.write("x")
    (tree / "dir" / "others").touch()


@pytest.mark.covers("inotify", "fanotify")
@pytest.mark.parametrize(
    "placement",
    [Placement.HOST, Placement.NAMESPACE, Placement.HOST_SOURCE],
    ids=lambda placement: placement.value,
)
def test_watches(scenario: MakeScenario, placement: Placement) -> None:
    """CRIU finds the inodes where a mount that it dumps shows them, and the plugin elsewhere."""
    held = scenario(placement).start(hold_watches).cycle()
    change_through_source(held)
    assert held.ask() == [OTHERS, OWN]
    assert held.cycle().ask() == [NOTHING, OWN]


def test_source_that_is_made_anew(scenario: MakeScenario) -> None:
    held = scenario(Placement.NAMESPACE_TMPFS).start(hold_watches)
    assert held.cycle().ask() == [NOTHING, OWN]


@pytest.mark.detached
@pytest.mark.covers("inotify", "fanotify", column="sole-held")
@pytest.mark.parametrize("fs_type", ["ext4", "btrfs"])
def test_device_that_is_mounted_again(scenario: MakeScenario, tmp_path: Path, fs_type: str) -> None:
    with disks.disk(tmp_path, fs_type) as disk:
        held = sole(scenario(Placement.HOST_SOURCE, mount_source=disk.mount).start(hold_watches))
        assert held.cycle().ask() == [NOTHING, OWN]


def hold_followed(task: Task) -> Check:
    """As who follows a log: the file is open, and with it its directory is watched."""
    log = os.open(task.path("dir/inner"), os.O_RDWR | os.O_APPEND)
    large = os.open(task.path("dir/large"), os.O_CREAT | os.O_WRONLY)
    os.write(large, bytes(range(256)) * (16 << 10))
    os.close(large)
    inotify = watch(task.path("dir/inner"), IN_MODIFY)
    watch(task.path("dir"), IN_MODIFY, inotify)
    watch(task.path(), IN_CREATE, inotify)
    task.detach()

    def check() -> list[object]:
        others = inotify_events(inotify)
        os.write(log, b"x")
        return [others, inotify_events(inotify)]

    return check


FOLLOWED = [[1, IN_MODIFY, ""], [2, IN_MODIFY, "inner"]]


@pytest.mark.parametrize("userns", [False, True], ids=["plain", "userns"])
def test_directory_that_is_not_held(scenario: MakeScenario, userns: bool) -> None:
    held = scenario(Placement.HOST_SOURCE, userns=userns).start(hold_followed)
    held.dump().succeeded()
    held.restore().succeeded()
    (held.ground.source / "tree" / "new").touch()
    others, own = held.ask()
    assert others == [[3, IN_CREATE, "new"]]
    assert sorted(own) == FOLLOWED


@pytest.mark.detached
def test_directory_that_is_not_held_on_its_own(scenario: MakeScenario) -> None:
    """The filesystem is mounted nowhere: the very fd of the file leads to the directory.

    Nothing is reached through a watch: what else is in the directory does not go into the images.
    """
    held = sole(scenario().start(hold_followed)).cycle()
    others, own = held.ask()
    assert (others, sorted(own)) == ([], FOLLOWED)
    assert (held.images / "criu-detached-data.img").stat().st_size < 1 << 20


def hold_watched_first(task: Task) -> Check:
    """A directory that CRIU meets as a watched one before it meets the task's fd of it."""
    inotify = watch(task.path("dir"), IN_CREATE)
    directory = os.open(task.path("dir"), os.O_RDONLY)
    task.detach()

    def check() -> list[object]:
        os.close(os.open("new", os.O_CREAT | os.O_EXCL, dir_fd=directory))
        os.unlink("new", dir_fd=directory)
        return [inotify_events(inotify), sorted(os.listdir(directory))]

    return check


@pytest.mark.detached
def test_directory_that_is_held_and_watched(scenario: MakeScenario) -> None:
    held = sole(scenario().start(hold_watched_first))
    before = held.ask()
    assert held.cycle().ask() == before


def hold_watches_alone(task: Task) -> Check:
    """Nothing of the filesystem but watches, of two tasks."""
    inotify = watch(task.path("dir"), IN_CREATE)
    watch(task.path("file"), IN_MODIFY, inotify)

    def child() -> Check:
        inner = watch(task.path("dir/inner"), IN_MODIFY)
        return lambda: inotify_events(inner)

    ask_child = task.fork(child)
    task.detach()
    return lambda: [inotify_events(inotify), ask_child()]


def test_nothing_else_is_held(scenario: MakeScenario) -> None:
    """The filesystem lives on where the process does not see it."""
    held = scenario(Placement.HOST_SOURCE).start(hold_watches_alone).cycle()
    change_through_source(held)
    with (held.ground.source / "tree" / "dir" / "inner").open("a") as file:
        file.write("x")
    assert held.ask() == [
        [[2, IN_MODIFY, ""], [1, IN_CREATE, "others"]],
        [[1, IN_MODIFY, ""]],
    ]


def hold_directory_beside(task: Task) -> Check:
    """A directory, and a watch of a file in it."""
    directory = os.open(task.path(), os.O_RDONLY)
    inotify = watch(task.path("dir/inner"), IN_MODIFY)
    task.detach()

    def check() -> list[object]:
        inner = os.open("dir/inner", os.O_WRONLY, dir_fd=directory)
        os.write(inner, b"x")
        os.close(inner)
        return inotify_events(inotify)

    return check


@pytest.mark.detached
def test_name_that_the_kernel_forgot(
    scenario: MakeScenario, mount_ext4: Callable[[Path], None]
) -> None:
    """A handle leads to a file without its name then."""
    held = scenario(Placement.HOST_SOURCE, mount_source=mount_ext4).start(hold_directory_beside)
    remount = ["mount", "-o", "remount", str(held.ground.source)]  # this drops unused names
    subprocess.run(remount, check=True)
    assert held.cycle().ask() == [[1, IN_MODIFY, ""]]


@pytest.mark.detached
def test_pre_dump(scenario: MakeScenario) -> None:
    """CRIU looks for the watched files in a pre-dump already, and again in the dump."""
    require_dirty_tracking()
    held = scenario(Placement.HOST_SOURCE).start(hold_watches)
    options = ["--tree", str(held.pid), "--track-mem", *held.ground.dump_options()]
    criu("pre-dump", held.work / "first", options, plugins=default_plugins()).succeeded()
    held.dump("--track-mem", "--prev-images-dir", "../first").succeeded()
    held.restore().succeeded()
    assert held.ask() == [NOTHING, OWN]


SOURCE_OR_SOLE = pytest.mark.parametrize("is_sole", [False, True], ids=["source", "sole"])


def start_unseen(scenario: MakeScenario, program: Program, is_sole: bool) -> Scenario:
    """Start a process whose filesystem is mounted where it does not see it, or nowhere."""
    held = scenario(Placement.HOST_SOURCE).start(program)
    return sole(held) if is_sole else held


def hold_leased(task: Task) -> Check:
    """A file that is watched for being opened, and has a lease that is broken by that."""
    inotify = watch(task.path("file"), IN_OPEN | IN_MODIFY)
    file = os.open(task.path("file"), os.O_RDWR)
    fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    inotify_events(inotify)
    task.detach()
    return lambda: [inotify_events(inotify), fcntl.fcntl(file, fcntl.F_GETLEASE)]


@pytest.mark.detached
@SOURCE_OR_SOLE
def test_watched_file_is_not_opened(scenario: MakeScenario, is_sole: bool) -> None:
    """Neither by the dump nor by the restore."""
    held = start_unseen(scenario, hold_leased, is_sole)
    held.dump("--leave-running", "--file-locks", "--file-validation", "filesize").succeeded()
    assert held.ask() == [[], fcntl.F_WRLCK]
    cycle_with_locks(held)
    assert held.ask()[1] == fcntl.F_WRLCK


def hold_log_beside(task: Task, name: str, mask: int) -> Check:
    """A regular file, and a watch of something else."""
    os.open(task.path("other"), os.O_RDONLY)
    watch(task.path(name), mask)
    task.detach()
    return lambda: True


@pytest.mark.detached
@pytest.mark.parametrize("name", ["file", "link"])
def test_refused(scenario: MakeScenario, name: str) -> None:
    """What no path leads to, and what CRIU would take for what a symlink leads to."""
    mask = IN_MODIFY | IN_DONT_FOLLOW
    held = scenario(Placement.HOST_SOURCE).start(hold_log_beside, name=name, mask=mask)
    why = {"file": "no mount leads to it", "link": "/tree/link: .*symlink"}
    if name == "file":
        sole(held)
    held.dump().failed(r"criu-detached: can't dump a watch .*" + why[name])
    assert held.ask() is True


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


def hold_deleted(task: Task) -> Check:
    """A deleted file that is held and watched."""
    file = os.open(task.path("file"), os.O_WRONLY | os.O_APPEND)
    inotify = watch(task.path("file"), IN_MODIFY)
    os.unlink(task.path("file"))
    task.detach()

    def check() -> bool:
        os.write(file, b"x")
        return bool(read_events(inotify))

    return check


def test_deleted_on_ext4(
    scenario: MakeScenario, placement: Placement, mount_ext4: Callable[[Path], None]
) -> None:
    """It is another file then, and is watched."""
    held = scenario(placement, mount_source=mount_ext4).start(hold_deleted)
    held.cycle()
    assert held.ask() is True


@pytest.mark.plain
def test_deleted_on_tmpfs_attached(scenario: MakeScenario) -> None:
    """CRIU itself refuses there."""
    held = scenario(attached=True).start(hold_deleted)
    held.dump(plugin=False).failed("Can't find suitable path for handle")
    assert held.ask() is True


@pytest.mark.detached
def test_deleted_attached(scenario: MakeScenario, mount_ext4: Callable[[Path], None]) -> None:
    """What is not on a detached mount is left to CRIU."""
    held = scenario(attached=True, mount_source=mount_ext4).start(hold_deleted)
    assert held.cycle(plugin=True).ask() is True
    held.dump(plugin=True).succeeded()
    assert not (held.images / "criu-detached.img").exists()


@pytest.mark.detached
def test_deleted_on_tmpfs(scenario: MakeScenario, placement: Placement) -> None:
    """Once more than CRIU does where the mount is attached."""
    held = scenario(placement).start(hold_deleted)
    assert held.cycle().ask() is True


@pytest.mark.detached
@SOURCE_OR_SOLE
def test_deleted_where_criu_sees_no_mount(scenario: MakeScenario, is_sole: bool) -> None:
    """It comes back with the file: there is a name to watch it by."""
    held = start_unseen(scenario, hold_deleted, is_sole)
    assert held.cycle().ask() is True
