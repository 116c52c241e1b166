"""How a mount came to be detached, what it looked like before, and what its source looks like."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from ..conftest import MakeScenario
from ..harness import kernel, look
from ..harness.agent import Check, Task
from ..harness.placement import (
    CONTENT,
    DIRECTORY,
    SUBDIRECTORY,
    Bind,
    Placement,
    Shape,
    populate_tree,
)
from ..harness.programs import run
from ..harness.scenario import Scenario


def open_all(paths: list[str]) -> Check:
    """Open files and directories; the check says what is read and listed there."""
    fds = [os.open(path, os.O_RDONLY) for path in paths]

    def read(fd: int) -> object:
        try:
            return sorted(os.listdir(fd))
        except NotADirectoryError:
            return os.pread(fd, 100, 0).decode()

    return lambda: [read(fd) for fd in fds]


def mounts_of(held: Scenario) -> list[int]:
    """Which mounts the files of the process are on, in the order of their fds."""
    files = look.open_files(held.pid)
    numbers: dict[int, int] = {}
    return [numbers.setdefault(files[fd].mnt_id, len(numbers)) for fd in sorted(files) if fd > 2]


def hold_nested(task: Task) -> Check:
    """A mount with one below it, and one below that; unmounting the first takes all of them."""
    run("mount", "--no-mtab", "--bind", task.path("dir", 1), task.path("dir"))
    run("mount", "--no-mtab", "--bind", task.path("", 1), task.path("dir/deeper"))
    check = open_all([task.path(name) for name in ("file", "dir/inner", "dir", "dir/deeper/file")])
    task.detach()
    return check


def with_deeper(source: Path) -> None:
    """The common tree, with a directory to mount on."""
    populate_tree(source)
    (source / "tree" / "dir" / "deeper").mkdir()


def test_nested(scenario: MakeScenario, placement: Placement) -> None:
    """The children are detached mounts of their own, and so they are restored."""
    held = scenario(placement, [Bind(), Bind()], populate=with_deeper).start(hold_nested)
    held.assert_detached(fd for fd in look.open_files(held.pid) if fd > 2)
    assert mounts_of(held) == [0, 1, 1, 2]
    held.cycle()
    assert held.ask() == [CONTENT, "inner\n", ["deeper", "inner"], CONTENT]


def hold_stacked(task: Task) -> Check:
    """Two mounts on one mount point, with files on both."""
    low = os.open(task.path("file"), os.O_RDONLY)
    run("mount", "--no-mtab", "--bind", task.path("", 1), task.points[0])
    high = os.open(f"{task.points[0]}/other", os.O_RDONLY)
    if not task.attached:
        run("umount", "--lazy", "--no-mtab", task.points[0])
    task.detach()
    return lambda: [os.pread(fd, 100, 0).decode() for fd in (low, high)]


@pytest.mark.detached
def test_stacked(scenario: MakeScenario, placement: Placement) -> None:
    held = scenario(placement, [Bind(), Bind()]).start(hold_stacked).cycle()
    assert mounts_of(held) == [0, 1]
    assert held.ask() == [CONTENT, "other\n"]


def hold_passed_out(task: Task) -> Check:
    """A file and a directory from a mount whose namespace is gone with the process that made it."""
    one, other = socket.socketpair()

    child = os.fork()
    if not child:
        if sys.version_info >= (3, 12):
            os.unshare(os.CLONE_NEWNS)
        run("mount", "--no-mtab", "--make-rprivate", "/")
        run("mount", "--no-mtab", "--bind", task.path(), task.points[1])
        opened = [os.open(f"{task.points[1]}/{name}", os.O_RDONLY) for name in ("file", "dir")]
        socket.send_fds(one, [b"!"], opened)
        os._exit(0)
    _, fds, _, _ = socket.recv_fds(other, 1, 2)
    os.waitpid(child, 0)
    one.close()
    other.close()
    # What was mounted in the namespace is taken apart a little later.
    while task.points[1] in os.readlink(f"/proc/self/fd/{fds[0]}"):
        os.sched_yield()
    task.detach()
    return lambda: [os.pread(fds[0], 100, 0).decode(), os.listdir(fds[1])]


@pytest.mark.detached
def test_namespace_died(scenario: MakeScenario, every_placement: Placement) -> None:
    held = scenario(every_placement, [Bind(), Bind()]).start(hold_passed_out)
    held.assert_detached(fd for fd in look.open_files(held.pid) if fd > 2)
    held.cycle()
    assert held.ask() == [CONTENT, ["inner"]]


def hold_propagating(task: Task, kind: str) -> Check:
    """Two mounts that were peers, and became what they were said to be."""
    points = [*task.points, f"{task.base}/peer"]
    os.mkdir(points[1])
    run("mount", "--no-mtab", "--make-shared", points[0])
    run("mount", "--no-mtab", "--bind", *points)
    for point in points:
        run("mount", "--no-mtab", f"--make-{kind}", point)
    check = open_all([f"{point}/file" for point in points])
    run("umount", "--lazy", "--no-mtab", points[1])
    task.detach()
    return check


@pytest.mark.detached
@pytest.mark.parametrize("kind", ["shared", "slave", "private", "unbindable"])
def test_propagation(scenario: MakeScenario, placement: Placement, kind: str) -> None:
    """It is of no account any more: a mount that is unmounted has no peers and no master."""
    held = scenario(placement, [Bind(SUBDIRECTORY)]).start(hold_propagating, kind=kind).cycle()
    assert held.ask() == [CONTENT, CONTENT]
    assert mounts_of(held) == [0, 1]


def hold_writer(task: Task) -> Check:
    """A file to write to and its directory."""
    directory = os.open(task.path(), os.O_RDONLY)
    fd = os.open("file", os.O_RDWR | os.O_APPEND, dir_fd=directory)
    task.detach()

    def check() -> list[object]:
        os.write(fd, b"more\n")
        os.close(os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=directory))
        return [os.pread(fd, 100, 0).decode(), sorted(os.listdir(directory))]

    return check


WRITTEN = [CONTENT + "more\n", ["dir", "fifo", "file", "link", "new", "null", "other", "zero"]]


@pytest.mark.parametrize("shape", [DIRECTORY, SUBDIRECTORY], ids=lambda s: s.name)
def test_renamed_in_source(scenario: MakeScenario, placement: Placement, shape: Shape) -> None:
    """The mount's root or what is above the file has another name by the time of the dump."""
    held = scenario(placement, [Bind(shape)]).start(hold_writer)
    source = held.ground.source
    (source / "tree").rename(source / "renamed")
    (source / "renamed" / "file").rename(source / "renamed" / "second")
    held.cycle()
    held.assert_detached(fd for fd in look.open_files(held.pid) if fd > 2)
    listed = ["dir", "fifo", "link", "new", "null", "other", "second", "zero"]
    assert held.ask() == [CONTENT + "more\n", listed]
    assert (source / "renamed" / "second").read_text() == CONTENT + "more\n"


def test_deeper_source(scenario: MakeScenario) -> None:
    """The source shows less than the filesystem, but all of the mount."""
    held = scenario(Placement.HOST, [Bind(SUBDIRECTORY)]).start(hold_writer)
    part = held.work / "part"
    part.mkdir()
    kernel.bind(held.ground.source / "tree", part)
    kernel.umount2(held.ground.source, kernel.MNT_DETACH)
    try:
        held.cycle()
        assert held.ask() == WRITTEN
    finally:
        held.kill()
        kernel.umount2(part)


def test_many_sources(scenario: MakeScenario) -> None:
    """Mounted several times: whole and in part, before and after, read-only too."""
    held = scenario(Placement.HOST, [Bind(SUBDIRECTORY)])
    again = [held.work / f"again{number}" for number in range(4)]
    held.start(hold_writer)
    for number, point in enumerate(again):
        point.mkdir()
        bound = held.ground.source / ("tree" if number % 2 else "")
        kernel.bind(bound, point, kernel.MS_RDONLY if number < 2 else 0)
    try:
        held.cycle()
        kernel.umount2(again.pop())  # they are not pinned by what was restored
        held.cycle()
        assert held.ask() == WRITTEN
    finally:
        held.kill()
        for point in again:
            kernel.umount2(point)


def hold_writer_of_read_only(task: Task, source: str) -> Check:
    """The same, and the source becomes read-only where it is mounted."""
    check = hold_writer(task)
    run("mount", "--no-mtab", "-o", "remount,bind,ro", source)
    return check


def test_read_only_source(scenario: MakeScenario, placement: Placement) -> None:
    """The mount was writable, and is again; its source is not."""
    held = scenario(placement, [Bind(SUBDIRECTORY)])
    source = "/mnt/source" if placement.own_namespace else str(held.ground.source)
    held.start(hold_writer_of_read_only, source=source)
    held.cycle()
    assert held.ask() == WRITTEN
    assert os.access(f"/proc/{held.pid}/root{source}", os.W_OK) is False
