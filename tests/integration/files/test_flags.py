"""Open flags, close-on-exec and owners come back as CRIU restores them for attached files."""

from __future__ import annotations

import fcntl
import os
import signal

import pytest

from ..conftest import MakeScenario
from ..harness import look
from ..harness.agent import Check, Task
from ..harness.placement import Placement


def opened(path: str, flags: int) -> int:
    """Open a file, without O_DIRECT where a tmpfs has none of it: before Linux 6.6."""
    try:
        return os.open(path, flags)
    except OSError:
        if not flags & os.O_DIRECT:
            raise
        return os.open(path, flags & ~os.O_DIRECT)


def hold_flags(task: Task) -> Check:
    """One fd for each flag, and one whose owner is sent a signal of its own."""
    for flags in (
        os.O_RDONLY,
        os.O_WRONLY,
        os.O_RDWR,
        os.O_WRONLY | os.O_APPEND,
        os.O_RDONLY | os.O_NOFOLLOW,
        os.O_RDWR | os.O_NONBLOCK,
        os.O_RDWR | os.O_SYNC,
        os.O_RDWR | os.O_DSYNC,
        os.O_RDONLY | os.O_NOATIME,
        os.O_RDWR | os.O_DIRECT,
        os.O_PATH,
        os.O_PATH | os.O_CLOEXEC,
        os.O_RDONLY | os.O_CLOEXEC,
    ):
        fd = opened(task.path("file"), flags)
        os.set_inheritable(fd, not flags & os.O_CLOEXEC)
    os.open(task.path("dir"), os.O_RDONLY | os.O_DIRECTORY)
    os.open(task.path("dir"), os.O_PATH | os.O_DIRECTORY)
    os.open(task.path("fifo"), os.O_RDONLY | os.O_NONBLOCK)
    owned = os.open(task.path("file"), os.O_RDWR)
    fcntl.fcntl(owned, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(owned, fcntl.F_SETSIG, signal.SIGRTMIN + 3)
    appender = os.open(task.path("other"), os.O_WRONLY | os.O_APPEND)
    task.detach()

    def check() -> dict[str, int]:
        os.lseek(appender, 0, os.SEEK_SET)
        os.write(appender, b"more\n")
        return {
            "owner": fcntl.fcntl(owned, fcntl.F_GETOWN) - os.getpid(),
            "signal": fcntl.fcntl(owned, fcntl.F_GETSIG),
            "appended": os.lseek(appender, 0, os.SEEK_CUR),
        }

    return check


def states(held_pid: int) -> dict[int, tuple[int, int, bool]]:
    """What of each fd must not depend on whether its mount is attached."""
    return {
        fd: (file.flags & ~look.CRIU_DROPS, file.pos, os.path.isdir(f"/proc/{held_pid}/fd/{fd}"))
        for fd, file in look.open_files(held_pid).items()
    }


@pytest.mark.covers("o_path", "o_nofollow", "o_append", "o_direct", "fowner")
def test_as_attached(scenario: MakeScenario, placement: Placement) -> None:
    """The same process is dumped with its mount attached and detached."""
    attached = scenario(placement, attached=True).start(hold_flags)
    attached.dump(plugin=False).succeeded()
    attached.restore(plugin=False).succeeded()
    detached = scenario(placement).start(hold_flags)
    detached.dump().succeeded()
    detached.restore().succeeded()
    assert states(detached.pid) == states(attached.pid)
    answer = detached.ask()
    assert answer == attached.ask()
    assert answer["owner"] == 0


@pytest.mark.plain
def test_masked_by_criu(scenario: MakeScenario) -> None:
    """CRIU masks O_TMPFILE, and with it O_DIRECTORY, out of what it opens; the rest it keeps."""
    attached = scenario(attached=True).start(hold_flags)
    before = {fd: file.flags for fd, file in look.open_files(attached.pid).items()}
    attached.dump(plugin=False).succeeded()
    attached.restore(plugin=False).succeeded()
    after = {fd: file.flags for fd, file in look.open_files(attached.pid).items()}
    assert after == {fd: flags & ~look.CRIU_DROPS for fd, flags in before.items()}
