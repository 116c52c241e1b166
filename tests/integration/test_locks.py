"""CRIU keeps file locks for files on detached mounts as it does for attached ones."""

from __future__ import annotations

import fcntl
import os

from .conftest import MakeScenario
from .harness.agent import Check, Task
from .harness.placement import Placement


def hold_locks(task: Task) -> Check:
    """A flock lock and a POSIX lock; a child without locks tells whether they are held."""
    flocked = os.open(task.path("file"), os.O_RDWR)
    locked = os.open(task.path("other"), os.O_RDWR)
    probe = os.open(task.path("file"), os.O_RDWR)

    def child() -> Check:
        os.close(flocked)

        def is_locked(function: str, fd: int) -> bool:
            try:
                getattr(fcntl, function)(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return True
            getattr(fcntl, function)(fd, fcntl.LOCK_UN)
            return False

        return lambda: [is_locked("flock", probe), is_locked("lockf", locked)]

    ask_child = task.fork(child)
    fcntl.flock(flocked, fcntl.LOCK_EX)
    fcntl.lockf(locked, fcntl.LOCK_EX, 2)
    task.detach()

    def check() -> list[object]:
        held = ask_child()
        fcntl.flock(flocked, fcntl.LOCK_UN)
        fcntl.lockf(locked, fcntl.LOCK_UN)
        released = ask_child()
        return [held, released]

    return check


def test_locks(scenario: MakeScenario, placement: Placement) -> None:
    held = scenario(placement).start(hold_locks)
    held.dump("--file-locks").succeeded()
    held.restore("--file-locks").succeeded()
    assert held.ask() == [[True, True], [False, False]]
