"""Files whose names are gone: they come back without a name, and nothing is left behind."""

from __future__ import annotations

import fcntl
import mmap
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from .. import disks
from ..conftest import MakeScenario
from ..harness import kernel, look
from ..harness.agent import Check, Task
from ..harness.placement import CONTENT, SINGLE_FILE, SUBDIRECTORY, Bind, Placement
from ..harness.scenario import Scenario
from ..settings import WAYS, Way

MIB = 1 << 20


def tree_of(held: Scenario) -> Path:
    """The tree on the source, as the runner sees it."""
    return held.ground.source / "tree"


def listing(root: Path) -> dict[str, tuple[int, int]]:
    """Every name beneath a directory, with the inode and the time of modification."""
    found = {}
    for path in [root, *sorted(root.rglob("*"))]:
        facts = path.lstat()
        found[str(path)] = (facts.st_ino, facts.st_mtime_ns)
    return found


def give_attribute(fd: int, value: bytes) -> str:
    """Give a file an extended attribute, and return its name; before Linux 6.6 tmpfs has few."""
    try:
        os.setxattr(fd, "user.color", value)
        return "user.color"
    except OSError:
        os.setxattr(fd, "trusted.color", value)
        return "trusted.color"


def hold_deleted_file(task: Task) -> Check:
    """A file with all that a file can have, open twice and mapped, and then deleted."""
    path = task.path("doomed")
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o640)
    os.write(fd, b"head")
    os.pwrite(fd, b"tail", 3 << 20)  # a hole between them
    os.ftruncate(fd, (4 << 20) + 1)
    os.fchown(fd, 1234, 5678)
    os.fchmod(fd, 0o4711)
    name = give_attribute(fd, b"blue\0green")
    os.utime(fd, ns=(1_000_000_000_000_000_001, 1_100_000_000_000_000_002))
    reader = os.open(path, os.O_RDONLY)
    appender = os.open(path, os.O_WRONLY | os.O_APPEND)
    mapping = mmap.mmap(fd, 8)
    os.unlink(path)
    task.detach()

    def look_at() -> dict[str, Any]:
        facts = os.fstat(fd)
        return {
            "facts": [facts.st_mode, facts.st_nlink, facts.st_uid, facts.st_gid, facts.st_size],
            "blocks": facts.st_blocks <= 64,
            "xattr": os.getxattr(fd, name).decode(),
            "one file": len({os.fstat(each).st_ino for each in (fd, reader, appender)}),
            "data": [os.pread(reader, 4, 0).decode(), os.pread(reader, 4, 3 << 20).decode()],
        }

    def check() -> list[dict[str, Any]]:
        before = look_at()
        before["mtime"] = os.fstat(fd).st_mtime_ns
        mapping[:4] = b"map!"
        os.write(appender, b"more")
        after = look_at()
        after["end"] = os.pread(reader, 9, 4 << 20).decode()
        # As it was, so that the next cycle finds the same.
        mapping[:4] = b"head"
        os.ftruncate(fd, (4 << 20) + 1)
        os.utime(fd, ns=(1_000_000_000_000_000_001, 1_100_000_000_000_000_002))
        return [before, after]

    return check


@pytest.mark.covers("deleted_file", "shared_mapping")
def test_file(scenario: MakeScenario, placement: Placement) -> None:
    held = scenario(placement).start(hold_deleted_file)
    expected = held.ask()
    before = listing(tree_of(held))
    held.cycle()
    assert held.ask() == expected
    held.cycle()
    found = held.ask()
    assert found[0]["facts"] == [stat.S_IFREG | 0o4711, 0, 1234, 5678, (4 << 20) + 1]
    assert found[0]["blocks"], "the hole was filled"
    assert found[1]["data"] == ["map!", "tail"]
    assert found[1]["end"] == "\0more"
    assert found == expected
    assert listing(tree_of(held)) == before


def hold_each_kind(task: Task) -> Check:
    """A deleted file of every kind that is opened by its path."""
    for name in ("regular", "empty"):
        with open(task.path(f"dir/{name}"), "w") as file:
            file.write(name * (name == "regular"))
    os.symlink("no where", task.path("dir/symlink"))
    os.mkfifo(task.path("dir/pipe"))
    os.mknod(task.path("dir/zero"), 0o20640, os.makedev(1, 5))
    regular = os.open(task.path("dir/regular"), os.O_RDONLY | os.O_NOFOLLOW)
    by_path = os.open(task.path("dir/regular"), os.O_PATH)
    empty = os.open(task.path("dir/empty"), os.O_WRONLY)
    symlink = os.open(task.path("dir/symlink"), os.O_PATH | os.O_NOFOLLOW)
    fifo = os.open(task.path("dir/pipe"), os.O_RDWR | os.O_NONBLOCK)
    os.write(fifo, b"waiting")
    zero = os.open(task.path("dir/zero"), os.O_RDONLY)
    for name in ("regular", "empty", "symlink", "pipe", "zero"):
        os.unlink(task.path(f"dir/{name}"))
    task.detach()

    def check() -> dict[str, Any]:
        waiting = os.read(fifo, 100)
        os.write(fifo, waiting)
        os.pwrite(empty, b"written", 0)
        return {
            "regular": os.pread(regular, 100, 0).decode(),
            "one file": os.fstat(regular).st_ino == os.stat(by_path).st_ino,
            "empty": os.fstat(empty).st_size,
            "symlink": os.readlink("", dir_fd=symlink),
            "fifo": waiting.decode(),
            "zero": os.read(zero, 2).decode(),
        }

    return check


@pytest.mark.covers("deleted_file", "o_nofollow", "o_path", "o_path_symlink", "fifo")
def test_each_kind(scenario: MakeScenario, placement: Placement) -> None:
    held = scenario(placement).start(hold_each_kind).cycle()
    found = held.ask()
    assert found == {
        "regular": "regular",
        "one file": True,
        "empty": 7,
        "symlink": "no where",
        "fifo": "waiting",
        "zero": "\0\0",
    }
    held.cycle()
    assert held.ask() == found
    assert os.listdir(tree_of(held) / "dir") == ["inner"]


def hold_linked(task: Task) -> Check:
    """A file that lost the name it was opened by, but has others, in and beside the mount."""
    os.link(task.path("file"), task.path("dir/alias"))
    fd = os.open(task.path("file"), os.O_RDWR)
    other = os.open(task.path("other"), os.O_RDWR)
    os.open(task.path("dir"), os.O_RDONLY)  # before Linux 7.0 it takes this to tell the root
    os.unlink(task.path("file"))
    task.detach()
    return lambda: [os.fstat(fd).st_nlink, os.pread(fd, 10, 0).decode(), os.fstat(other).st_nlink]


@pytest.mark.covers("deleted_linked_file")
def test_linked(scenario: MakeScenario, placement: Placement) -> None:
    held = scenario(placement, [Bind(SUBDIRECTORY)]).start(hold_linked)
    inode = (tree_of(held) / "dir" / "alias").stat().st_ino
    (held.ground.source / "outside").hardlink_to(tree_of(held) / "other")
    (tree_of(held) / "other").unlink()
    before = listing(held.ground.source)
    held.cycle()
    assert held.ask() == [1, CONTENT[:10], 1]
    fds = [fd for fd, file in look.open_files(held.pid).items() if file.link.endswith("(deleted)")]
    assert {os.stat(f"/proc/{held.pid}/fd/{fd}").st_ino for fd in fds} == {
        inode,
        (held.ground.source / "outside").stat().st_ino,
    }
    assert listing(held.ground.source) == before


def hold_unnamed(task: Task) -> Check:
    """A file made with O_TMPFILE: the program gives it a name when it is complete."""
    fd = os.open(task.path("dir"), os.O_TMPFILE | os.O_RDWR, 0o600)
    directory = os.open(task.path("dir"), os.O_RDONLY)
    os.write(fd, b"draft")
    task.detach()

    def check() -> str:
        os.pwrite(fd, b"final", 0)
        os.link(f"/proc/self/fd/{fd}", "complete", dst_dir_fd=directory, follow_symlinks=True)
        return os.readlink(f"/proc/self/fd/{fd}")

    return check


@pytest.mark.covers("o_tmpfile")
def test_unnamed(scenario: MakeScenario, placement: Placement) -> None:
    """The kernel names it by its inode, which is a new one."""
    held = scenario(placement).start(hold_unnamed)
    held.dump().succeeded()
    held.restore().succeeded()
    link = held.ask()
    complete = tree_of(held) / "dir" / "complete"
    assert link == f"/tree/dir/#{complete.stat().st_ino} (deleted)"
    assert complete.read_text() == "final"


def hold_directories(task: Task) -> Check:
    """Deleted directories, one in the other: the working directory and an fd of the outer."""
    os.makedirs(task.path("outer/inner"))
    os.chmod(task.path("outer"), 0o2750)
    outer = os.open(task.path("outer"), os.O_RDONLY | os.O_DIRECTORY)
    os.chdir(task.path("outer/inner"))
    lost = os.open("lost", os.O_RDWR | os.O_CREAT)
    os.unlink("lost")
    os.rmdir(task.path("outer/inner"))
    os.rmdir(task.path("outer"))
    task.detach()

    def check() -> list[Any]:
        up = os.stat("..")
        facts = os.fstat(outer)
        return [
            os.listdir(outer),
            os.listdir("."),
            (up.st_dev, up.st_ino) == (facts.st_dev, facts.st_ino),
            facts.st_mode,
            os.fstat(lost).st_nlink,
            os.readlink("/proc/self/cwd"),
        ]

    return check


@pytest.mark.covers("deleted_directory", "cwd")
def test_directories(scenario: MakeScenario, placement: Placement) -> None:
    held = scenario(placement).start(hold_directories)
    before = listing(tree_of(held))
    expected = held.ask()
    held.cycle()
    assert held.ask() == expected
    assert expected[2:4] == [True, stat.S_IFDIR | 0o2750]
    held.cycle()
    assert held.ask() == expected
    assert listing(tree_of(held)) == before


def hold_open(task: Task, names: list[str]) -> Check:
    """Some files, to which the runner does something."""
    fds = [os.open(task.path(name), os.O_RDONLY) for name in names]
    task.detach()
    return lambda: [os.fstat(fd).st_nlink for fd in fds]


@pytest.mark.covers("deleted_directory")
def test_root_of_the_mount(scenario: MakeScenario, placement: Placement) -> None:
    """The directory that was bound is gone from the source with all that was in it."""
    held = scenario(placement, [Bind(SUBDIRECTORY)])
    held.start(hold_open, names=["", "dir/inner"])
    for path in sorted(tree_of(held).rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    tree_of(held).rmdir()
    held.cycle()
    assert held.ask() == [0, 0]
    assert list(held.ground.source.iterdir()) == []
    held.cycle()
    assert held.ask() == [0, 0]


def hold_single(task: Task) -> Check:
    """The one file of a mount."""
    fd = os.open(task.path(), os.O_RDWR)
    task.detach()
    return lambda: os.pread(fd, 100, 0).decode()


@pytest.mark.covers("deleted_file")
def test_single_file(scenario: MakeScenario, placement: Placement) -> None:
    """A file is bound, and then replaced in the source, as many a configuration file is."""
    held = scenario(placement, [Bind(SINGLE_FILE)]).start(hold_single)
    new = tree_of(held) / "new"
    new.write_text("new\n")
    new.rename(tree_of(held) / "file")
    held.cycle()
    assert held.ask() == CONTENT
    assert sorted(os.listdir(tree_of(held))) == sorted(
        ["file", "other", "dir", "link", "fifo", "null", "zero"]
    )
    assert (tree_of(held) / "file").read_text() == "new\n"


@pytest.mark.parametrize("attached", [False, True], ids=["detached", "attached"])
def test_taken_name(scenario: MakeScenario, placement: Placement, attached: bool) -> None:
    """Another file has the name by now. It is left alone, so the link gets CRIU's suffix."""
    held = scenario(placement, attached=attached).start(hold_open, names=["file"])
    (tree_of(held) / "file").unlink()
    (tree_of(held) / "file").write_text("another\n")
    before = listing(tree_of(held))
    held.dump().succeeded()
    held.restore().succeeded()
    links = [file.link for file in look.open_files(held.pid).values()]
    assert [link.rsplit("/", 1)[1] for link in links if "tree" in link] == [
        "file.cr_link (deleted)"
    ]
    if not attached:
        assert listing(tree_of(held)) == before
    assert (tree_of(held) / "file").read_text() == "another\n"


@pytest.mark.detached
def test_taken_long_name(scenario: MakeScenario) -> None:
    """With the suffix it would be too long: it is cut."""

    def hold_long(task: Task, name: str) -> Check:
        fd = os.open(task.path(name), os.O_RDWR | os.O_CREAT)
        os.write(fd, b"deleted")
        os.unlink(task.path(name))
        task.detach()
        return lambda: [os.pread(fd, 10, 0).decode(), os.readlink(f"/proc/self/fd/{fd}")]

    held = scenario().start(hold_long, name="x" * 255)
    (tree_of(held) / ("x" * 255)).touch()
    held.dump().succeeded()
    held.restore().succeeded()
    assert held.ask() == ["deleted", f"/tree/{'x' * 247}.cr_link (deleted)"]


def test_read_only_mount(scenario: MakeScenario, placement: Placement) -> None:
    """The mounts are read-only, the filesystem is not."""
    held = scenario(placement, [Bind(flags=kernel.MS_RDONLY)]).start(hold_open, names=["file"])
    (tree_of(held) / "file").unlink()
    held.cycle()
    assert held.ask() == [0]
    (fd,) = (fd for fd, f in look.open_files(held.pid).items() if f.link.endswith("(deleted)"))
    assert look.mount_flags(held.pid, fd) & os.ST_RDONLY


def hold_large(task: Task, blocks: int) -> Check:
    """A deleted file with so many KiB on disk."""
    fd = os.open(task.path("large"), os.O_RDWR | os.O_CREAT)
    for block in range(blocks):
        os.write(fd, b"%1024d" % block)
    os.unlink(task.path("large"))
    task.detach()
    return lambda: sum(
        os.pread(fd, 1024, block << 10) == b"%1024d" % block for block in range(blocks)
    )


@pytest.mark.detached
@WAYS
def test_limit(scenario: MakeScenario, placement: Placement, way: Way) -> None:
    """The limit is criu's, 1 MiB; a setting raises it."""
    held = scenario(placement).start(hold_large, blocks=1028)
    held.dump().failed("1052672 bytes on disk, over the limit of 1048576: write .ghost-limit 2M.")
    assert held.ask() == 1028
    held.dump(*way(held, "ghost-limit", "2M")).succeeded()
    held.restore().succeeded()
    assert held.ask() == 1028


@pytest.mark.detached
def test_malformed_setting(scenario: MakeScenario) -> None:
    held = scenario().start(hold_large, blocks=1)
    held.images.mkdir()
    (held.images / "criu-detached.conf").write_text("ghost-limit lots\n")
    held.dump().failed("lots is no size")
    assert held.ask() == 1


def fill(directory: Path) -> list[Path]:
    """Take all the room that is left, or all inodes; returns the files that do."""
    with suppress(OSError):
        for number in range(1000):
            (directory / f"filler{number}").write_bytes(bytes(1 << 14))
    made = list(directory.glob("filler*"))
    assert len(made) < 1000
    return made


@pytest.mark.detached
@pytest.mark.parametrize("limit", ["size=512k", "nr_inodes=30"])
def test_full(scenario: MakeScenario, placement: Placement, limit: str) -> None:
    """The source has no room for it by now: nothing of it is left, and later it comes back."""

    def mount_small(source: Path) -> None:
        kernel.mount("small", source, "tmpfs", data=limit)

    held = scenario(placement, mount_source=mount_small).start(hold_large, blocks=64)
    held.dump().succeeded()
    fillers = fill(tree_of(held))
    before = listing(tree_of(held))
    held.restore().failed("criu-detached: .*can't make the deleted files of .*No space left")
    held.assert_gone()
    assert listing(tree_of(held)) == before
    for filler in fillers:
        filler.unlink()
    held.restore().succeeded()
    assert held.ask() == 64


def hold_many(task: Task, count: int) -> Check:
    """Many deleted files, all of which had the same name, shared with a child."""
    fds = []
    for number in range(count):
        fds.append(os.open(task.path("log"), os.O_RDWR | os.O_CREAT))
        os.write(fds[-1], b"%d" % number)
        os.unlink(task.path("log"))

    def child() -> Check:
        return lambda: [int(os.pread(fd, 10, 0)) for fd in fds]

    ask_child = task.fork(child)
    task.detach()
    return lambda: [ask_child(), child()()]


def test_many_of_one_name(scenario: MakeScenario, placement: Placement) -> None:
    held = scenario(placement).start(hold_many, count=50).cycle()
    assert held.ask() == [list(range(50)), list(range(50))]


def hold_locked(task: Task) -> Check:
    """A lock on a deleted file."""
    fd = os.open(task.path("file"), os.O_RDWR)
    probe = os.open(task.path("file"), os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    os.unlink(task.path("file"))
    task.detach()

    def check() -> bool:
        try:
            fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False

    return check


@pytest.mark.covers("flock")
def test_locked(scenario: MakeScenario, placement: Placement) -> None:
    held = scenario(placement).start(hold_locked)
    held.dump("--file-locks").succeeded()
    held.restore("--file-locks").succeeded()
    assert held.ask() is True


@pytest.mark.detached
@pytest.mark.parametrize("damage", ["removed", "cut", "foreign"])
def test_damaged_data_file(scenario: MakeScenario, placement: Placement, damage: str) -> None:
    """Found before there is any task; nothing is made in the source."""
    held = scenario(placement).start(hold_deleted_file)
    held.dump().succeeded()
    before = listing(tree_of(held))
    data = held.images / "criu-detached-data.img"
    if damage == "removed":
        data.unlink()
    elif damage == "cut":
        os.truncate(data, data.stat().st_size - 1)
    else:
        data.write_bytes(b"x" * data.stat().st_size)
    held.restore().failed("criu-detached-data.img")
    held.assert_gone()
    assert listing(tree_of(held)) == before


@pytest.mark.detached
def test_alias_gone_at_restore(scenario: MakeScenario) -> None:
    """The other name went away while the task was in images: then nothing leads to the file."""
    held = scenario().start(hold_linked)
    held.dump().succeeded()
    (tree_of(held) / "dir" / "alias").unlink()
    (tree_of(held) / "dir" / "alias").write_text("another\n")
    held.restore().failed("file was deleted, and its other name .*alias, does not lead to it")
    held.assert_gone()
    assert (tree_of(held) / "dir" / "alias").read_text() == "another\n"


@pytest.mark.parametrize("fs_type", sorted(disks.MAKERS))
def test_filesystems(scenario: MakeScenario, tmp_path: Path, fs_type: str) -> None:
    """Not every filesystem makes files without a name, or keeps extended attributes."""
    with disks.disk(tmp_path, fs_type) as disk:
        held = scenario(mount_source=disk.mount, populate=populate_plain).start(hold_plain)
        before = sorted(os.listdir(tree_of(held)))
        held.cycle()
        assert held.ask() == ["deleted", 0, 0]
        held.cycle()
        assert held.ask() == ["deleted", 0, 0]
        assert sorted(os.listdir(tree_of(held))) == before
        held.kill()
        held.ground.clear()


def populate_plain(source: Path) -> None:
    """What every filesystem can hold."""
    (source / "tree" / "dir").mkdir(parents=True)


def hold_plain(task: Task) -> Check:
    """A deleted file in a deleted directory, and something that is still there."""
    os.mkdir(task.path("gone"))
    directory = os.open(task.path("gone"), os.O_RDONLY)
    file = os.open(task.path("gone/file"), os.O_RDWR | os.O_CREAT)
    os.open(task.path("dir"), os.O_RDONLY)
    os.write(file, b"deleted")
    os.unlink(task.path("gone/file"))
    os.rmdir(task.path("gone"))
    task.detach()

    def check() -> list[Any]:
        links = os.fstat(directory).st_nlink if os.listdir(directory) else 0
        return [os.pread(file, 100, 0).decode(), os.fstat(file).st_nlink, links]

    return check
