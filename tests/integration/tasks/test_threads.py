"""Threads with files of a detached mount; CRIU does not keep what a thread has for itself."""

from __future__ import annotations

import errno
import os
import queue
import shutil
import sys
import threading
from typing import Any

import pytest

from ..conftest import MakeScenario
from ..harness.agent import Check, Task
from ..harness.placement import CONTENT, Placement

CLONE_FS, CLONE_FILES = 0x200, 0x400


def hold_in_thread(task: Task, unshared: int) -> Check:
    """A thread that may have a working directory or fds of its own; it reads a file relative."""
    here = os.open(task.path(), os.O_RDONLY | os.O_DIRECTORY)
    os.chdir(here)
    questions: queue.SimpleQueue[bool] = queue.SimpleQueue()
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def read(directory: int | None, name: str) -> object:
        try:
            fd = os.open(name, os.O_RDONLY, dir_fd=directory)
        except OSError as error:
            return error.errno
        text = os.pread(fd, 100, 0).decode()
        os.close(fd)
        return text

    def live() -> None:
        own = here
        if sys.version_info >= (3, 12) and unshared:
            os.unshare(unshared)
        if unshared == CLONE_FS:
            os.chdir("dir")
        if unshared == CLONE_FILES:
            own = os.open("dir", os.O_RDONLY | os.O_DIRECTORY)
        answers.put(None)
        while questions.get():
            answers.put([read(None, "inner"), read(own, "inner")])

    threading.Thread(target=live, daemon=True).start()
    answers.get()
    task.detach()

    def check() -> list[object]:
        questions.put(True)
        of_thread = answers.get()  # first: what is opened here could get the number of its fd
        return [read(None, "file"), read(here, "file"), *of_thread]

    return check


MISSING = errno.ENOENT


@pytest.mark.covers("cwd", "directory")
def test_shared(scenario: MakeScenario, placement: Placement) -> None:
    """A thread as any: it has the process's working directory and its fds."""
    held = scenario(placement).start(hold_in_thread, unshared=0).cycle()
    assert held.ask() == [CONTENT, CONTENT, MISSING, MISSING]


def hold_in_thread_alone(task: Task, unshared: int, changed: bool) -> Check:
    """A thread that has a working directory or fds of its own, which may be like the process's."""
    started: queue.SimpleQueue[None] = queue.SimpleQueue()
    here = os.open(task.path(), os.O_RDONLY | os.O_DIRECTORY)
    os.chdir(here)

    def live() -> None:
        if sys.version_info >= (3, 12):
            os.unshare(unshared)
        started.put(None)
        threading.Event().wait()

    threading.Thread(target=live, daemon=True).start()
    started.get()
    if changed:
        os.chdir("/")
        os.close(here)
    task.detach()
    return lambda: "file" in os.listdir()


@pytest.mark.detached
@pytest.mark.parametrize("unshared", [CLONE_FS, CLONE_FILES], ids=["fs", "files"])
def test_own(scenario: MakeScenario, placement: Placement, unshared: int) -> None:
    """It would be lost: the dump is refused, with the thread's name, also if it alone holds it."""
    what = "working directory" if unshared == CLONE_FS else r"fd \d+"
    held = scenario(placement).start(hold_in_thread, unshared=unshared)
    held.dump().failed(rf"criu-detached: .* {what} of thread \d+ of process {held.pid}, /tree/dir")
    assert held.ask()[:2] == [CONTENT, CONTENT]
    held.kill()
    held = scenario(placement).start(hold_in_thread_alone, unshared=unshared, changed=True)
    held.dump().failed(rf"criu-detached: .* {what} of thread \d+ of process {held.pid}, /tree ")
    assert held.ask() is False


@pytest.mark.parametrize("unshared", [CLONE_FS, CLONE_FILES], ids=["fs", "files"])
def test_own_that_is_the_same(scenario: MakeScenario, unshared: int) -> None:
    """Nothing is lost but that the thread could have had another."""
    held = scenario().start(hold_in_thread_alone, unshared=unshared, changed=False)
    assert held.cycle().ask() is True


@pytest.mark.detached
@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
def test_own_that_cannot_be_seen(scenario: MakeScenario) -> None:
    """It may be on a detached mount, so it is not lost without a word."""
    held = scenario().start(hold_in_thread, unshared=CLONE_FS)
    (tid,) = {int(name) for name in os.listdir(f"/proc/{held.pid}/task")} - {held.pid}
    place = f"/proc/{held.pid}/task/{tid}/cwd"
    strace = ["strace", "--output=/dev/null", "--trace=openat", f"--trace-path={place}"]
    run = held.dump(prefix=[*strace, "--inject=openat:error=EMFILE"])
    run.failed(f"can't look at the working directory of thread {tid} of process {held.pid}: ")
    assert held.ask() == [CONTENT, CONTENT, "inner\n", MISSING]


@pytest.mark.plain
@pytest.mark.parametrize(
    ("unshared", "before", "after"),
    [
        pytest.param(CLONE_FS, ["inner\n", MISSING], [MISSING, MISSING], id="fs"),
        pytest.param(CLONE_FILES, [MISSING, "inner\n"], [MISSING, errno.EBADF], id="files"),
    ],
)
def test_own_attached(
    scenario: MakeScenario, unshared: int, before: list[object], after: list[object]
) -> None:
    """CRIU looks at the main thread's alone: it loses what another has, and says nothing."""
    held = scenario(attached=True).start(hold_in_thread, unshared=unshared)
    assert held.ask() == [CONTENT, CONTENT, *before]
    held.cycle(plugin=False)
    assert held.ask() == [CONTENT, CONTENT, *after]


def test_priority_that_looks_like_an_error(scenario: MakeScenario) -> None:
    """CRIU tells a priority of -1 from a failure of getpriority(2) by errno alone."""

    def hold_priorities(task: Task) -> Check:
        def hold_priority() -> Check:
            os.setpriority(os.PRIO_PROCESS, 0, -1)
            return lambda: os.getpriority(os.PRIO_PROCESS, 0)

        asks = [hold_priority(), task.fork(hold_priority)]
        return lambda: [ask() for ask in asks]

    held = scenario(attached=True).start(hold_priorities)
    held.dump(plugin=True).succeeded()
    held.restore(plugin=True).succeeded()
    assert held.ask() == [-1, -1]
