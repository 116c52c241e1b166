"""Filesystems in memory that nobody else shows: they are made anew with what tasks can reach."""

from __future__ import annotations

import hashlib
import mmap
import os
from pathlib import Path
from typing import Any

import pytest

from ..conftest import MakeScenario
from ..harness import kernel, look
from ..harness.agent import Check, Task
from ..harness.placement import CONTENT, SUBDIRECTORY, Bind, Placement
from ..harness.scenario import Scenario
from ..soleheld import SOLE, sole

pytestmark = pytest.mark.detached


def hold_life(task: Task) -> Check:
    """Files, a directory, the working directory, mappings, a FIFO, and files without names."""
    file = os.open(task.path("file"), os.O_RDWR | os.O_APPEND)
    os.read(file, 10)
    os.chdir(task.path("dir"))
    top = os.open(task.path(), os.O_RDONLY)
    symlink = os.open(task.path("link"), os.O_PATH | os.O_NOFOLLOW)
    fifo = os.open(task.path("fifo"), os.O_RDWR | os.O_NONBLOCK)
    os.write(fifo, b"waiting")
    null = os.open(task.path("null"), os.O_RDWR)
    other = os.open(task.path("other"), os.O_RDWR)
    shared = mmap.mmap(other, 6)
    private = mmap.mmap(other, 6, flags=mmap.MAP_PRIVATE)
    private[:1] = b"P"
    deleted = os.open(task.path("deleted"), os.O_RDWR | os.O_CREAT)
    os.write(deleted, b"deleted")
    os.unlink(task.path("deleted"))
    os.link(task.path("file"), task.path("dir/second"))
    lost = os.open(task.path("lost"), os.O_RDWR | os.O_CREAT)
    os.write(lost, b"lost and found")
    os.link(task.path("lost"), task.path("dir/found"))
    os.unlink(task.path("lost"))
    unnamed = os.open(task.path("dir"), os.O_TMPFILE | os.O_RDWR)
    os.write(unnamed, b"unnamed")
    task.detach()

    def check() -> dict[str, Any]:
        waiting = os.read(fifo, 100)
        os.write(fifo, waiting)
        shared[:1] = b"S"
        inner = os.open("inner", os.O_RDWR)
        os.utime(inner, ns=(5, 7))
        answer = {
            "file": os.pread(file, 100, 0).decode(),
            "position": os.lseek(file, 0, os.SEEK_CUR),
            "links": os.fstat(file).st_nlink,
            "second": os.stat("second").st_ino == os.fstat(file).st_ino,
            "here": sorted(os.listdir(".")),
            "top": sorted(os.listdir(top)),
            "up": os.stat("../..").st_ino == os.fstat(os.open("..", os.O_PATH, dir_fd=top)).st_ino,
            "symlink": os.readlink("", dir_fd=symlink),
            "fifo": waiting.decode(),
            "null": os.write(null, b"x"),
            "shared": os.pread(other, 6, 0).decode(),
            "private": private[:].decode(),
            "deleted": [os.fstat(deleted).st_nlink, os.pread(deleted, 10, 0).decode()],
            "lost": [os.fstat(lost).st_nlink, os.stat("found").st_ino == os.fstat(lost).st_ino],
            "unnamed": os.pread(unnamed, 10, 0).decode(),
            "times": os.fstat(inner).st_mtime_ns,
            "one filesystem": len({os.fstat(fd).st_dev for fd in (file, top, deleted, other)}),
        }
        os.close(inner)
        return answer

    return check


ITEMS = [
    "file",
    "directory",
    "o_path",
    "o_path_symlink",
    "o_nofollow",
    "o_append",
    "fifo",
    "character_device",
    "cwd",
    "shared_mapping",
    "private_mapping",
    "deleted_file",
    "deleted_linked_file",
    "o_tmpfile",
]


@pytest.mark.covers(*ITEMS, column="sole-held")
@SOLE
def test_life(scenario: MakeScenario, placement: Placement) -> None:
    lives_on(sole(scenario(placement).start(hold_life)))


def lives_on(held: Scenario) -> None:
    """What hold_life holds is the same after each of two cycles."""
    expected = held.ask()
    assert expected["file"] == CONTENT
    for _ in range(2):
        before = look.seen(held.pid)
        held.dump().succeeded()
        held.restore().succeeded()
        # O_TMPFILE's link has the inode's number in it.
        assert without_unnamed(look.seen(held.pid)) == without_unnamed(before)
        found = held.ask()
        found.pop("up"), expected.pop("up", None)
        assert found == expected


def without_unnamed(seen: look.Seen) -> look.Seen:
    """All but the links of files that never had a name."""
    files = {
        pid: {fd: file for fd, file in fds.items() if "#" not in file.link}
        for pid, fds in seen.files.items()
    }
    return look.Seen(files, seen.mounts, seen.runner_mounts)


def hold_files_alone(task: Task) -> Check:
    """Files, and no directory: through them nothing else can be reached."""
    fds = [os.open(task.path(name), os.O_RDWR) for name in ("file", "dir/inner")]
    task.detach()
    return lambda: [os.pread(fd, 100, 0).decode() for fd in fds]


def test_files_alone(scenario: MakeScenario, tmp_path: Path) -> None:
    """What no task can reach is not saved."""
    held = sole(scenario().start(hold_files_alone))
    held.cycle()
    assert held.ask() == [CONTENT, "inner\n"]
    data = (held.images / "criu-detached-data.img").read_bytes()
    assert CONTENT.encode() in data
    assert b"other\n" not in data


def hold_deleted_directory(task: Task) -> Check:
    """A directory that was deleted, and nothing else: the way up from it is still there."""
    os.mkdir(task.path("dir/gone"))
    gone = os.open(task.path("dir/gone"), os.O_RDONLY)
    os.rmdir(task.path("dir/gone"))
    task.detach()

    def check() -> list[object]:
        up = os.open("..", os.O_RDONLY, dir_fd=gone)
        inner = os.open("inner", os.O_RDONLY, dir_fd=up)
        answer = [sorted(os.listdir(up)), os.read(inner, 100).decode(), os.fstat(gone).st_nlink]
        os.close(inner)
        os.close(up)
        return answer

    return check


def test_deleted_directory_alone(scenario: MakeScenario) -> None:
    held = sole(scenario().start(hold_deleted_directory))
    before = held.ask()
    assert held.cycle().ask() == before


def hold_two_mounts(task: Task) -> Check:
    """One filesystem through two mounts, one of them of a subdirectory and read-only."""
    one = os.open(task.path("dir/inner", 0), os.O_RDONLY)
    two = os.open(task.path("inner", 1).replace("/inner", "/dir/inner"), os.O_RDONLY)
    top = os.open(task.path("", 0), os.O_RDONLY)
    task.detach()

    def check() -> list[Any]:
        first, second = os.fstat(one), os.fstat(two)
        return [
            (first.st_dev, first.st_ino) == (second.st_dev, second.st_ino),
            os.fstatvfs(two).f_flag & os.ST_RDONLY,
            os.fstatvfs(one).f_flag & os.ST_RDONLY,
            len(os.listdir(top)),
        ]

    return check


def hold_names_on_two_mounts(task: Task) -> Check:
    """One file by a name of its own on each of two mounts, and no directory."""
    os.link(task.path("file"), task.path("dir/second"))
    fds = [os.open(task.path("file", 0), os.O_RDWR), os.open(task.path("dir/second", 1), os.O_RDWR)]
    task.detach()

    def check() -> list[Any]:
        os.pwrite(fds[0], b"links", 0)
        return [os.pread(fds[1], 5, 0).decode(), os.fstat(fds[1]).st_nlink]

    return check


def test_names_on_two_mounts(scenario: MakeScenario) -> None:
    """They are one file again, where the kernel tells how the mounts lie in each other."""
    held = sole(scenario(binds=[Bind(), Bind()]).start(hold_names_on_two_mounts))
    before = held.ask()
    assert before == ["links", 2]
    if not kernel.has_statmount_by_fd():
        held.dump().failed("Linux 7.0 or newer tells")
        return
    assert held.cycle().ask() == before


@SOLE
def test_two_mounts(scenario: MakeScenario, placement: Placement) -> None:
    binds = [Bind(), Bind(SUBDIRECTORY, kernel.MS_RDONLY)]
    held = sole(scenario(placement, binds).start(hold_two_mounts))
    held.cycle()
    assert held.ask() == [True, 1, 0, 7]


def hold_full(task: Task) -> Check:
    """A directory of a filesystem that is full to its last block and inode."""
    top = os.open(task.path(), os.O_RDONLY)
    task.detach()

    def check() -> dict[str, Any]:
        fs = os.fstatvfs(top)
        digests = []
        for name in sorted(os.listdir(top)):
            if name.startswith("full"):
                with open(
                    name, "rb", opener=lambda path, flags: os.open(path, flags, dir_fd=top)
                ) as file:
                    digests.append(hashlib.sha256(file.read()).hexdigest())
        return {
            "free": [fs.f_bfree, fs.f_ffree],
            "all": [fs.f_blocks, fs.f_files],
            "digests": digests,
        }

    return check


def populate_full(source: Path) -> None:
    """Two files that take all the room, and links without content that take all inodes."""
    (source / "tree").mkdir()
    for name in ("full1", "full2"):
        with open(source / "tree" / name, "wb", buffering=0) as file:
            try:
                while file.write(os.urandom(1 << 16)):
                    if name == "full1" and file.tell() >= 1 << 19:
                        break
            except OSError:
                pass
    number = 0
    try:
        while True:
            (source / "tree" / str(number)).mkdir()
            number += 1
    except OSError:
        pass


def test_full(scenario: MakeScenario) -> None:
    """Its limits are reached exactly: they are so again."""

    def mount_small(source: Path) -> None:
        kernel.mount("small", source, "tmpfs", 0, "size=1m,nr_inodes=60")

    held = sole(scenario(mount_source=mount_small, populate=populate_full).start(hold_full))
    before = held.ask()
    assert before["free"] == [0, 0]
    held.cycle()
    assert held.ask() == before


def test_held_elsewhere(scenario: MakeScenario) -> None:
    """Another process has a file of it open: the data would part."""
    held = scenario().start(hold_files_alone)
    with open(held.ground.source / "tree" / "other"):
        sole(held)
        held.dump().failed("it is in memory alone, and process [0-9]+ holds it too|holds it too")
        assert held.ask() == [CONTENT, "inner\n"]
    held.cycle()
    assert held.ask() == [CONTENT, "inner\n"]


def hold_links(task: Task, names: list[str], directory: bool) -> Check:
    """One file by two names, of which one is deleted by now."""
    os.link(task.path("file"), task.path("dir/second"))
    fds = [os.open(task.path(name), os.O_RDWR) for name in names]
    if directory:
        os.chdir(task.path("dir"))
    os.unlink(task.path("file"))
    task.detach()

    def check() -> list[Any]:
        os.pwrite(fds[0], b"links", 0)
        facts = [os.fstat(fd) for fd in fds]
        names = sorted(os.listdir(".")) if directory else []
        return [
            os.pread(fds[1], 5, 0).decode(),
            len({f.st_ino for f in facts}),
            facts[0].st_nlink,
            names,
        ]

    return check


@pytest.mark.parametrize("names", [["file", "dir/second"], ["dir/second", "file"]])
@pytest.mark.parametrize("directory", [False, True])
def test_two_names(scenario: MakeScenario, names: list[str], directory: bool) -> None:
    """They are one file again, and the name that is left is there."""
    held = sole(scenario().start(hold_links, names=names, directory=directory))
    found = ["inner", "second"] * directory
    assert held.ask() == ["links", 1, 1, found]
    held.dump().succeeded()
    held.restore().succeeded()
    assert held.ask() == ["links", 1, 1, found]
