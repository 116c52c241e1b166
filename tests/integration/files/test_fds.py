"""Every kind of fd that CRIU treats as a path: it is there again and leads to the same file."""

from __future__ import annotations

import os

import pytest

from ..conftest import MakeScenario
from ..harness import look
from ..harness.agent import Check, Task
from ..harness.placement import (
    CONTENT,
    DIRECTORY,
    SINGLE_FILE,
    SUBDIRECTORY,
    Bind,
    Placement,
    Shape,
)
from ..harness.programs import hold_position


def hold_each_kind(task: Task) -> Check:
    """A file, a directory, a symlink, a FIFO with data in it, and two character devices."""
    file = os.open(task.path("file"), os.O_RDWR)
    os.read(file, 10)
    directory = os.open(task.path("dir"), os.O_RDONLY | os.O_DIRECTORY)
    top = os.open(task.path(), os.O_RDONLY)
    by_path = os.open(task.path("file"), os.O_PATH)
    link = os.open(task.path("link"), os.O_PATH | os.O_NOFOLLOW)
    fifo = os.open(task.path("fifo"), os.O_RDWR | os.O_NONBLOCK)
    os.write(fifo, b"waiting")
    null = os.open(task.path("null"), os.O_RDWR)
    zero = os.open(task.path("zero"), os.O_RDONLY)
    task.detach()

    def check() -> dict[str, object]:
        waiting = os.read(fifo, 100).decode()
        os.write(fifo, b"waiting")
        os.lseek(file, 10, os.SEEK_SET)
        inner = os.open("inner", os.O_RDONLY, dir_fd=directory)
        up = os.open("../file", os.O_RDONLY, dir_fd=directory)
        found = {
            "file": os.read(file, 100).decode(),
            "directory": os.listdir(directory),
            "inner": os.read(inner, 100).decode(),
            "up": os.read(up, 100).decode(),
            "top": sorted(os.listdir(top)),
            "by_path": os.stat(by_path).st_size,
            "link": os.readlink("", dir_fd=link),
            "fifo": waiting,
            "null": [os.write(null, b"gone"), os.read(null, 4).decode()],
            "zero": os.read(zero, 4).decode(),
        }
        os.close(inner)
        os.close(up)
        os.lseek(file, 10, os.SEEK_SET)
        return found

    return check


EACH_KIND = {
    "file": CONTENT[10:],
    "directory": ["inner"],
    "inner": "inner\n",
    "up": CONTENT,
    "top": sorted(["file", "other", "dir", "link", "fifo", "null", "zero"]),
    "by_path": len(CONTENT),
    "link": "file",
    "fifo": "waiting",
    "null": [4, ""],
    "zero": "\0\0\0\0",
}


@pytest.mark.plain
@pytest.mark.parametrize("placement", [Placement.HOST, Placement.NAMESPACE], ids=str)
def test_attached(scenario: MakeScenario, placement: Placement) -> None:
    """The yardstick: plain CRIU restores all of these while the mount is attached."""
    held = scenario(placement, attached=True).start(hold_each_kind)
    held.cycle(plugin=False)
    assert held.ask() == EACH_KIND


@pytest.mark.covers("file", "directory", "o_path", "o_path_symlink", "fifo", "character_device")
@pytest.mark.parametrize("shape", [DIRECTORY, SUBDIRECTORY], ids=lambda s: s.name)
def test_each_kind(scenario: MakeScenario, every_placement: Placement, shape: Shape) -> None:
    held = scenario(every_placement, [Bind(shape)]).start(hold_each_kind)
    held.assert_detached(fd for fd in look.open_files(held.pid) if fd > 2)
    held.cycle()
    assert held.ask() == EACH_KIND


@pytest.mark.covers("file")
def test_single_file(scenario: MakeScenario, every_placement: Placement) -> None:
    held = scenario(every_placement, [Bind(SINGLE_FILE)]).start(hold_position)
    held.cycle()
    fd, rest = held.ask()
    held.assert_detached([fd])
    assert rest == CONTENT[10:]


@pytest.mark.covers("file", "o_append")
def test_written_file_is_the_same_file(scenario: MakeScenario) -> None:
    """A restored fd writes to the file of the source, not to a copy."""

    def hold_writer(task: Task) -> Check:
        fd = os.open(task.path("file"), os.O_WRONLY | os.O_APPEND)
        task.detach()
        return lambda: os.write(fd, b"restored\n")

    held = scenario().start(hold_writer)
    held.cycle()
    held.ask()
    assert (held.ground.source / "tree" / "file").read_text() == CONTENT + "restored\n"
