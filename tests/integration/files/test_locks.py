"""CRIU keeps file locks for files on detached mounts as it does for attached ones."""

from __future__ import annotations

import fcntl
import os
import signal
import struct

import pytest

from ..conftest import MakeScenario
from ..harness.agent import Check, Task
from ..harness.placement import Placement
from ..harness.scenario import Scenario


def cycle_with_locks(held: Scenario) -> None:
    """Dump and restore as a user does who knows of the locks.

    By default CRIU opens every file anew for its build id: an open that breaks a write lease, and
    that CRIU waits for.
    """
    held.dump("--file-locks", "--file-validation", "filesize").succeeded()
    held.restore("--file-locks", "--file-validation", "filesize").succeeded()


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


@pytest.mark.covers("flock", "posix_lock")
def test_locks(scenario: MakeScenario, placement: Placement) -> None:
    held = scenario(placement).start(hold_locks)
    cycle_with_locks(held)
    assert held.ask() == [[True, True], [False, False]]


def ofd_lock(fd: int, command: int, kind: int, start: int, length: int) -> int:
    """fcntl(2) with a lock of the open file description; returns the kind that it leaves."""
    lock = struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0)
    return int(struct.unpack("hhqqi4x", fcntl.fcntl(fd, command, lock))[0])


def hold_ofd_locks(task: Task) -> Check:
    """Two descriptions share bytes 0 to 3 of a file, and one of them has the file from 8 on.

    The locks are the descriptions', not the process's: a third description meets them.
    """
    writer, reader, probe = (os.open(task.path("file"), os.O_RDWR) for _ in range(3))
    ofd_lock(writer, fcntl.F_OFD_SETLK, fcntl.F_RDLCK, 0, 4)
    ofd_lock(writer, fcntl.F_OFD_SETLK, fcntl.F_WRLCK, 8, 0)
    ofd_lock(reader, fcntl.F_OFD_SETLK, fcntl.F_RDLCK, 0, 4)
    task.detach()

    def in_the_way() -> list[int]:
        wanted = ((fcntl.F_WRLCK, 0), (fcntl.F_RDLCK, 0), (fcntl.F_WRLCK, 5), (fcntl.F_WRLCK, 99))
        return [ofd_lock(probe, fcntl.F_OFD_GETLK, kind, start, 1) for kind, start in wanted]

    def check() -> list[list[int]]:
        found = [in_the_way()]
        for fd in (writer, reader):
            ofd_lock(fd, fcntl.F_OFD_SETLK, fcntl.F_UNLCK, 0, 0)
            found.append(in_the_way())
        return found

    return check


@pytest.mark.covers("ofd_lock")
def test_ofd_locks(scenario: MakeScenario, placement: Placement) -> None:
    held = scenario(placement).start(hold_ofd_locks)
    cycle_with_locks(held)
    shared, free, alone = fcntl.F_RDLCK, fcntl.F_UNLCK, fcntl.F_WRLCK
    assert held.ask() == [
        [shared, free, free, alone],
        [shared, free, free, free],  # the second description's lock is one of its own
        [free, free, free, free],
    ]


def may_write(fd: int) -> bool:
    """Whether the file can be opened for writing at once; the holder of a lease is told of it."""
    try:
        os.close(os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK))
    except BlockingIOError:
        return False
    return True


def hold_leases(task: Task) -> Check:
    """A read lease and a write lease, each on a file of its own and with its own signal."""
    signals = [signal.SIGRTMIN + 1, signal.SIGRTMIN + 2]
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    leased = [os.open(task.path("file"), os.O_RDONLY), os.open(task.path("other"), os.O_RDWR)]
    for fd, number, kind in zip(leased, signals, (fcntl.F_RDLCK, fcntl.F_WRLCK), strict=True):
        fcntl.fcntl(fd, fcntl.F_SETSIG, number)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, kind)
    task.detach()

    def check() -> list[list[object]]:
        found: list[list[object]] = []
        for fd, number in zip(leased, signals, strict=True):
            lease = fcntl.fcntl(fd, fcntl.F_GETLEASE)
            free = may_write(fd)
            told = signal.sigtimedwait([number], 0) is not None
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
            found.append([lease, free, told, may_write(fd)])
        return found

    return check


@pytest.mark.covers("lease")
def test_leases(scenario: MakeScenario, placement: Placement) -> None:
    held = scenario(placement).start(hold_leases)
    cycle_with_locks(held)
    kinds = (fcntl.F_RDLCK, fcntl.F_WRLCK)
    assert held.ask() == [[kind, False, True, True] for kind in kinds]


def hold_broken_lease(task: Task) -> Check:
    """A write lease that somebody else wants to be given up, which has not happened yet."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGIO})
    fd = os.open(task.path("other"), os.O_RDWR)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    task.detach()
    may_write(fd)
    signal.sigwait({signal.SIGIO})

    def check() -> list[object]:
        wanted = fcntl.fcntl(fd, fcntl.F_GETLEASE)
        before = may_write(fd)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, wanted)
        return [wanted, before, may_write(fd)]

    return check


@pytest.mark.covers("lease")
def test_broken_lease(scenario: MakeScenario, placement: Placement) -> None:
    """CRIU breaks the restored lease again: it opens the file and expects to be refused."""
    held = scenario(placement).start(hold_broken_lease)
    cycle_with_locks(held)
    assert held.ask() == [fcntl.F_UNLCK, False, True]


def test_locks_need_the_option(scenario: MakeScenario, placement: Placement) -> None:
    """Without --file-locks the dump is refused, as for any file, and the process keeps them."""
    held = scenario(placement).start(hold_ofd_locks)
    held.dump().failed("Some file locks are hold by dumping tasks")
    assert held.ask()[0] == [fcntl.F_RDLCK, fcntl.F_UNLCK, fcntl.F_UNLCK, fcntl.F_WRLCK]
