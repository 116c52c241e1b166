"""Whom a file on a detached mount signals, and with what, is kept."""

from __future__ import annotations

import fcntl
import os
import signal
import struct

import pytest

from ..conftest import MakeScenario
from ..harness.agent import Check, Task
from ..harness.placement import Placement

F_SETOWN_EX, F_GETOWN_EX = 15, 16
F_OWNER_PID, F_OWNER_PGRP = 1, 2


def hold_owned(task: Task, armed: bool) -> Check:
    """A FIFO that signals the process when it can be read, and files that would others."""
    wanted = signal.SIGRTMIN + 3
    signal.pthread_sigmask(signal.SIG_BLOCK, {wanted})

    def child() -> Check:
        return os.getpid

    ask_child = task.fork(child)
    fifo = os.open(task.path("fifo"), os.O_RDWR | os.O_NONBLOCK)
    file = os.open(task.path("file"), os.O_RDONLY)
    directory = os.open(task.path("dir"), os.O_RDONLY)
    owners = {
        fifo: struct.pack("ii", F_OWNER_PID, os.getpid()),
        file: struct.pack("ii", F_OWNER_PID, ask_child()),
        directory: struct.pack("ii", F_OWNER_PGRP, os.getpgrp()),
    }
    for fd, owner in owners.items():
        fcntl.fcntl(fd, F_SETOWN_EX, owner)
        fcntl.fcntl(fd, fcntl.F_SETSIG, wanted)

    def arm() -> None:
        fcntl.fcntl(fifo, fcntl.F_SETFL, os.O_NONBLOCK | os.O_ASYNC)

    if armed:
        arm()
    task.detach()

    def check() -> dict[str, object]:
        arm()
        os.write(fifo, b"x")
        told = signal.sigtimedwait([wanted], 0)
        return {
            "owners": [fcntl.fcntl(fd, F_GETOWN_EX, bytes(8)) == owners[fd] for fd in owners],
            "signals": [fcntl.fcntl(fd, fcntl.F_GETSIG) == wanted for fd in owners],
            "told": told is not None,
        }

    return check


@pytest.mark.covers("fowner")
def test_owners(scenario: MakeScenario, placement: Placement) -> None:
    held = scenario(placement).start(hold_owned, armed=False).cycle()
    assert held.ask() == {"owners": [True] * 3, "signals": [True] * 3, "told": True}


@pytest.mark.plain
def test_armed_attached(scenario: MakeScenario) -> None:
    """CRIU opens with O_ASYNC what had it: that arms nothing, and nothing can arm it after.

    To Linux the flag is set then, so setting it is no change.
    """
    held = scenario(attached=True).start(hold_owned, armed=True).cycle(plugin=False)
    assert held.ask() == {"owners": [True] * 3, "signals": [True] * 3, "told": False}
