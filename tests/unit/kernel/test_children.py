"""Questions that may never be answered."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path

import pytest

from criu_detached.kernel.children import ask_each

from .. import support


def hang() -> bytes:
    """Never answer."""
    while True:
        signal.pause()


def refuse() -> bytes:
    raise OSError(errno.EIO, "it is broken")


def fail() -> bytes:
    raise ValueError("a defect")


def die() -> bytes:
    os.kill(os.getpid(), signal.SIGKILL)
    return b""


def test_answers() -> None:
    """In the order of the questions, from one child with a copy of the memory."""
    before = support.open_fds()
    words = [b"", b"one", bytes(1 << 18)]
    answers = ask_each([lambda word=word: word for word in words])  # type: ignore[misc]
    assert [answer.data for answer in answers] == words
    pids = [int(answer.data) for answer in ask_each([lambda: b"%d" % os.getpid()] * 2)]
    assert pids[0] == pids[1] != os.getpid()
    assert ask_each([]) == []
    assert support.open_fds() == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_errors() -> None:
    """One that fails is no reason not to ask the next."""
    answers = ask_each([refuse, fail, die, lambda: b"last"])
    with pytest.raises(OSError, match="it is broken") as found:
        _ = answers[0].data
    assert found.value.errno == errno.EIO
    with pytest.raises(OSError, match="ValueError: a defect"):
        _ = answers[1].data
    with pytest.raises(OSError, match="died"):
        _ = answers[2].data
    assert answers[3].data == b"last"


def test_no_answer() -> None:
    """Who hangs is given up, and the others are asked."""
    before = support.open_fds()
    started = time.monotonic()
    answers = ask_each([lambda: b"first", hang, lambda: b"between", hang, lambda: b"last"], 1)
    assert 1 < time.monotonic() - started < 10
    assert [answer.in_time for answer in answers] == [True, False, True, False, True]
    with pytest.raises(TimeoutError):
        _ = answers[1].data
    assert support.open_fds() == before


def test_child_has_no_fds() -> None:
    """Whoever waits for the end of a pipe does not wait for a child that hangs."""
    [answer] = ask_each([lambda: b" ".join(sorted(os.fsencode(n) for n in os.listdir("/dev/fd")))])
    fds = [int(fd) for fd in answer.data.split()]
    assert len(fds) == 5  # /dev/null, where the answers go, and the listing itself
    links = [lambda fd=fd: os.fsencode(os.readlink(f"/dev/fd/{fd}")) for fd in range(3)]
    assert {answer.data for answer in ask_each(links)} == {b"/dev/null"}


def test_ends_with_its_parent(tmp_path: Path) -> None:
    """A child that hangs does not outlive whoever has asked it."""
    fifo = tmp_path / "pid"
    os.mkfifo(fifo)
    asking = os.fork()
    if not asking:
        ask_each([lambda: b"%d" % fifo.write_text(str(os.getpid())), hang], 60)
        os._exit(0)
    child = int(fifo.read_text())
    os.kill(asking, signal.SIGTERM)  # a signal ends it, though it waits
    assert os.waitpid(asking, 0)[1] == signal.SIGTERM
    deadline = time.monotonic() + 10
    while is_running(child):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
