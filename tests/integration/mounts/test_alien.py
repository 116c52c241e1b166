"""What is not on a detached mount is left to CRIU, as if the plugin were not there."""

from __future__ import annotations

import mmap
import os
import re
import select
import socket
import tempfile

from ..conftest import MakeScenario
from ..harness import look
from ..harness.agent import Check, Task
from ..harness.placement import SUBDIRECTORY, Bind, Placement


def hold_kernel_internal(task: Task) -> Check:
    """Objects that have a mount, but one of the kernel's own; and one detached file."""
    memfd = os.memfd_create("held")
    os.write(memfd, b"memfd")
    mapped = mmap.mmap(memfd, 5)
    anonymous = mmap.mmap(-1, 4096)
    anonymous[:6] = b"shared"
    read_end, write_end = os.pipe()
    os.write(write_end, b"pipe")
    one, other = socket.socketpair()
    one.send(b"socket")
    epoll = select.epoll()
    event = os.eventfd(7)
    epoll.register(event, select.EPOLLIN)
    deleted = tempfile.TemporaryFile(dir=task.base)  # noqa: SIM115  (held on purpose)
    deleted.write(b"deleted")
    deleted.flush()
    file = os.open(task.path("file"), os.O_RDONLY)
    task.detach()

    def check() -> list[object]:
        return [
            os.pread(memfd, 10, 0).decode(),
            mapped[:].decode(),
            anonymous[:6].decode(),
            os.read(read_end, 10).decode(),
            other.recv(10).decode(),
            len(epoll.poll(0)),
            os.eventfd_read(event),
            os.pread(deleted.fileno(), 10, 0).decode(),
            os.read(file, 2).decode(),
        ]

    return check


def test_kernel_internal(scenario: MakeScenario, placement: Placement) -> None:
    held = scenario(placement).start(hold_kernel_internal).cycle()
    expected = ["memfd", "memfd", "shared", "pipe", "socket", 1, 7, "deleted", "01"]
    assert held.ask() == expected


def hold_foreign(task: Task, path: str) -> Check:
    """A file reached through another process's root."""
    fd = os.open(path, os.O_RDONLY)
    return lambda: os.pread(fd, 100, 0).decode()


def test_alien_mount(scenario: MakeScenario) -> None:
    """A mount of a namespace that is not dumped: CRIU's own refusal stands, word for word."""
    stranger = scenario(Placement.NAMESPACE_TMPFS).start(hold_foreign, path="/dev/null")
    path = f"/proc/{stranger.pid}/root/mnt/source/tree/other"
    held = scenario().start(hold_foreign, path=path)
    plain = held.dump(plugin=False)
    assert look.is_running(held.pid)
    plain.failed("Can't lookup mount=")
    steered = held.dump(plugin=True)
    steered.failed("Can't lookup mount=")
    assert [timeless(line) for line in steered.errors()] == [
        timeless(line) for line in plain.errors()
    ]
    assert held.ask() == "other\n"


def timeless(line: str) -> str:
    """A log line without what differs between two runs."""
    return re.sub(r"^\([\d.]+\)", "", line)


def hold_attached(task: Task) -> Check:
    """A file on a mount that stays."""
    fd = os.open(task.path("file"), os.O_RDONLY)
    return lambda: os.read(fd, 2).decode()


def test_known_mount(scenario: MakeScenario, placement: Placement) -> None:
    """A mount that is attached is CRIU's; nothing is recorded of it."""
    held = scenario(placement, [Bind(SUBDIRECTORY)], attached=True).start(hold_attached)
    with_plugin = held.dump(plugin=True).succeeded()
    assert "criu-detached:" not in "".join(with_plugin.errors())
    assert not (held.images / "criu-detached.img").exists()
    held.restore(plugin=True).succeeded()
    assert held.ask() == "01"
