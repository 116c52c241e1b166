"""Fds on their way between tasks, and fds that several tasks share, are where they were."""

from __future__ import annotations

import os
import select
import signal
import socket

import pytest

from ..conftest import MakeScenario
from ..harness import look
from ..harness.agent import Check, Task
from ..harness.placement import CONTENT, Bind, Placement

CLONE_FS, CLONE_FILES, SYS_CLONE = 0x200, 0x400, 56
KINDS = {"stream": 1, "dgram": 2, "seqpacket": 5}  # as socket.SOCK_*


def hold_in_flight(task: Task, kind: int) -> Check:
    """Files and directories of two mounts in two messages that a child has not received yet."""
    one, other = socket.socketpair(socket.AF_UNIX, kind)

    def child() -> Check:
        one.close()

        def check() -> list[object]:
            found: list[object] = []
            for _ in range(2):
                text, fds, _, _ = socket.recv_fds(other, 1, 2)
                found += [text.decode(), os.read(fds[0], 2).decode(), sorted(os.listdir(fds[1]))]
            return found

        return check

    ask_child = task.fork(child)
    other.close()
    for mount, text in enumerate((b"a", b"b")):
        file = os.open(task.path("file", mount), os.O_RDONLY)
        os.lseek(file, 3 + mount, os.SEEK_SET)
        directory = os.open(task.path("dir", mount), os.O_RDONLY)
        socket.send_fds(one, [text], [file, directory])
        os.close(file)
        os.close(directory)
    task.detach()
    return ask_child


@pytest.mark.covers("scm_rights")
@pytest.mark.parametrize("kind", KINDS)
def test_to_another_task(scenario: MakeScenario, placement: Placement, kind: str) -> None:
    held = scenario(placement, [Bind(), Bind()]).start(hold_in_flight, kind=KINDS[kind]).cycle()
    held.cycle()  # nothing but the sockets leads to the mounts
    assert held.ask() == ["a", "34", ["inner"], "b", "45", ["inner"]]


def hold_each_kind(task: Task) -> Check:
    """One of each kind in one message: by path alone, a symlink, a FIFO with data, a device."""
    one, other = socket.socketpair()
    fds = [
        os.open(task.path("file"), os.O_PATH),
        os.open(task.path("link"), os.O_PATH | os.O_NOFOLLOW),
        os.open(task.path("fifo"), os.O_RDWR | os.O_NONBLOCK),
        os.open(task.path("zero"), os.O_RDONLY),
        os.open(task.path("other"), os.O_RDONLY),
    ]
    os.write(fds[2], b"waiting")
    os.unlink(task.path("other"))
    socket.send_fds(one, [b"x"], fds)
    for fd in fds:
        os.close(fd)
    task.detach()

    def check() -> list[object]:
        _, (by_path, link, *readable), _, _ = socket.recv_fds(other, 1, len(fds))
        read = [os.read(fd, 8).decode() for fd in readable]
        return [os.fstat(by_path).st_size, os.readlink("", dir_fd=link), *read]

    return check


@pytest.mark.covers("scm_rights")
def test_each_kind(scenario: MakeScenario, placement: Placement) -> None:
    held = scenario(placement).start(hold_each_kind).cycle()
    assert held.ask() == [len(CONTENT), "file", "waiting", "\0" * 8, "other\n"]


def hold_polled(task: Task) -> Check:
    """A FIFO that an epoll waits for."""
    fifo = os.open(task.path("fifo"), os.O_RDWR | os.O_NONBLOCK)
    epoll = select.epoll()
    epoll.register(fifo, select.EPOLLIN)
    task.detach()

    def check() -> list[object]:
        before = epoll.poll(0)
        os.write(fifo, b"x")
        after = [number == fifo for number, event in epoll.poll(0) if event == select.EPOLLIN]
        return [before, after, os.read(fifo, 2).decode()]

    return check


@pytest.mark.covers("fifo")
def test_epoll(scenario: MakeScenario, placement: Placement) -> None:
    held = scenario(placement).start(hold_polled).cycle()
    assert held.ask() == [[], [True], "x"]


def hold_shared_table(task: Task) -> Check:
    """A process that has its fds in common with its child: what one closes, both have not."""
    import ctypes  # the fd of libffi that it leaves open does no harm here

    libc = ctypes.CDLL(None)
    file = os.open(task.path("file"), os.O_RDONLY)
    ask_read, ask_write = os.pipe()
    answer_read, answer_write = os.pipe()
    if libc.syscall(SYS_CLONE, CLONE_FILES | signal.SIGCHLD, 0, 0, 0, 0) == 0:
        while os.read(ask_read, 1):
            read = os.read(file, 2)
            os.close(file)
            os.write(answer_write, read)
    task.detach()

    def check() -> list[object]:
        os.write(ask_write, b"?")
        read = os.read(answer_read, 2).decode()
        try:
            return [read, os.read(file, 2).decode()]
        except OSError as error:
            return [read, error.errno]

    return check


def test_shared_table(scenario: MakeScenario, placement: Placement) -> None:
    held = scenario(placement).start(hold_shared_table).cycle()
    assert len(look.tree(held.pid)) == 2
    assert held.ask() == ["01", 9]


def hold_shared_places(task: Task) -> Check:
    """A process that has its working directory and root in common with its child."""
    import ctypes  # as above

    os.chdir(task.path("dir"))
    if ctypes.CDLL(None).syscall(SYS_CLONE, CLONE_FS | signal.SIGCHLD, 0, 0, 0, 0) == 0:
        while True:
            signal.pause()
    task.detach()
    return os.listdir


@pytest.mark.parametrize("attached", [True, False])
def test_shared_places(scenario: MakeScenario, attached: bool) -> None:
    """CRIU does not dump that, wherever they are."""
    held = scenario(attached=attached).start(hold_shared_places)
    held.dump().failed("Can't make FS id for")
    assert held.ask() == ["inner"]
