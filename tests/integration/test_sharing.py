"""What was shared is shared again: open file descriptions and mounts, and nothing else."""

from __future__ import annotations

import os

from .conftest import MakeScenario
from .harness import look
from .harness.agent import Check, Task
from .harness.placement import CONTENT, DIRECTORY, SUBDIRECTORY, Bind, Placement


def hold_shared(task: Task) -> Check:
    """A dup and a forked copy of one description, and a second description of the same file."""
    shared = os.open(task.path("file"), os.O_RDONLY)
    duplicate = os.dup(shared)
    apart = os.open(task.path("file"), os.O_RDONLY)

    def child() -> Check:
        os.close(duplicate)
        return lambda: os.read(shared, 2).decode()

    ask_child = task.fork(child)
    task.detach()

    def check() -> list[str]:
        os.lseek(shared, 0, os.SEEK_SET)
        read = [os.read(shared, 2).decode(), os.read(duplicate, 2).decode(), ask_child()]
        return [*read, os.read(shared, 2).decode(), os.read(apart, 2).decode()]

    return check


def hold_two_mounts(task: Task) -> Check:
    """The same file through three mounts of one filesystem, and another file on the first."""
    fds = [os.open(task.path("file", mount), os.O_RDONLY) for mount in (0, 1, 2)]
    fds.append(os.open(task.path("other"), os.O_RDONLY))
    task.detach()
    return lambda: [os.pread(fd, 100, 0).decode() for fd in fds]


def test_descriptions(scenario: MakeScenario, placement: Placement) -> None:
    held = scenario(placement).start(hold_shared).cycle()
    assert held.ask() == ["01", "23", "45", "67", "01"]


def test_mounts(scenario: MakeScenario, placement: Placement) -> None:
    """Two mounts that differ in nothing but their ids are two again, and one is one."""
    binds = [Bind(DIRECTORY), Bind(DIRECTORY), Bind(SUBDIRECTORY)]
    held = scenario(placement, binds).start(hold_two_mounts).cycle()
    assert held.ask() == [CONTENT, CONTENT, CONTENT, "other\n"]
    files = look.open_files(held.pid)
    first, second, third, again = (files[fd].mnt_id for fd in sorted(files) if fd > 2)
    assert first == again
    assert len({first, second, third}) == 3
