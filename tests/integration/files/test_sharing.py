"""What was shared is shared again: open file descriptions and mounts, and nothing else."""

from __future__ import annotations

import os
import socket

import pytest

from ..conftest import MakeScenario
from ..harness import look
from ..harness.agent import Check, Task
from ..harness.placement import CONTENT, DIRECTORY, SUBDIRECTORY, Bind, Placement


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


@pytest.mark.covers("file")
def test_descriptions(scenario: MakeScenario, placement: Placement) -> None:
    held = scenario(placement).start(hold_shared).cycle()
    assert held.ask() == ["01", "23", "45", "67", "01"]


@pytest.mark.covers("file")
def test_mounts(scenario: MakeScenario, placement: Placement) -> None:
    """Two mounts that differ in nothing but their ids are two again, and one is one."""
    binds = [Bind(DIRECTORY), Bind(DIRECTORY), Bind(SUBDIRECTORY)]
    held = scenario(placement, binds).start(hold_two_mounts).cycle()
    assert held.ask() == [CONTENT, CONTENT, CONTENT, "other\n"]
    files = look.open_files(held.pid)
    first, second, third, again = (files[fd].mnt_id for fd in sorted(files) if fd > 2)
    assert first == again
    assert len({first, second, third}) == 3


def hold_in_flight(task: Task) -> Check:
    """A file that was sent over a socket, closed, and not received yet."""
    one, other = socket.socketpair()
    fd = os.open(task.path("file"), os.O_RDONLY)
    os.lseek(fd, 4, os.SEEK_SET)
    socket.send_fds(one, [b"file"], [fd])
    os.close(fd)
    task.detach()

    def check() -> str:
        _, received, _, _ = socket.recv_fds(other, 10, 1)
        return os.read(received[0], 2).decode()

    return check


@pytest.mark.covers("scm_rights")
def test_in_flight(scenario: MakeScenario, placement: Placement) -> None:
    held = scenario(placement).start(hold_in_flight).cycle()
    assert held.ask() == "45"


def hold_hard_links(task: Task) -> Check:
    """Both names of one file, which CRIU keeps apart by inode only."""
    os.link(task.path("file"), task.path("second"))
    fds = [os.open(task.path(name), os.O_RDONLY) for name in ("file", "second")]
    os.read(fds[1], 3)
    task.detach()
    return lambda: [[os.read(fd, 2).decode(), os.fstat(fd).st_nlink] for fd in fds]


def test_hard_links(scenario: MakeScenario) -> None:
    """They lead to the same file again; under which name is not told apart."""
    held = scenario(Placement.HOST).start(hold_hard_links)
    held.dump().succeeded()
    held.restore().succeeded()
    assert held.ask() == [["01", 2], ["34", 2]]
