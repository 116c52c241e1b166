"""A run that meets no detached file is CRIU's own: no Python, and hardly a system call more."""

from __future__ import annotations

import os
import shutil
import signal
from collections import Counter
from pathlib import Path

import pytest

from ..conftest import MakeScenario
from ..files.test_watches import IN_MODIFY, watch
from ..harness.agent import Check, Task
from ..harness.criu import CriuRun
from ..harness.placement import CONTENT, Placement
from ..harness.scenario import Scenario

# The plugin's own .so is found, mapped and relocated, and criu's image of itself is steered.
MORE_CALLS = 60
ROUNDS = 10
# These come as often as the frozen tasks happen to send signals.
UNSTEADY = ("---", "+++", "rt_sigreturn", "restart_syscall", "wait4", "ptrace")
LOGGING = ("write(", "writev(", "gettimeofday(")
# A few bytes more or less in the heap decide whether malloc gives its end back at each free().
ALLOCATION = ("brk(", "mmap(", "munmap(", "mremap(", "madvise(")


def hold_attached(task: Task) -> Check:
    """A file of a mount that stays, and a watch of it."""
    fd = os.open(task.path("file"), os.O_RDWR)
    watch(task.path("file"), IN_MODIFY)
    return lambda: os.pread(fd, 100, 0).decode()


def traced(held: Scenario, trace: Path, verb: str, *, plugin: bool) -> Counter[str]:
    """How often criu's main process made each system call; those that it forks are its tracees.

    Left out are its log, which tells more the more the machine runs, and what malloc asks for.
    """
    prefix = ["strace", "--output", str(trace)]
    run: CriuRun = (held.dump if verb == "dump" else held.restore)(plugin=plugin, prefix=prefix)
    run.succeeded()
    calls = trace.read_text().splitlines()
    assert not [call for call in calls if "libpython" in call]
    assert any("criu_detached.so" in call for call in calls) is plugin
    left_out = UNSTEADY + LOGGING + ALLOCATION
    return Counter(call.partition("(")[0] for call in calls if not call.startswith(left_out))


@pytest.mark.detached
@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
def test_nothing_detached(scenario: MakeScenario, tmp_path: Path) -> None:
    held = scenario(Placement.HOST, attached=True).start(hold_attached)
    best: dict[str, Counter[str]] = {}
    # What else the machine runs can make criu look further: one quiet round shows what is its own.
    for _ in range(ROUNDS):
        for verb in ("dump", "restore"):
            counts = {}
            for plugin in (False, True):
                if verb == "restore":
                    held.dump(plugin=plugin).succeeded()
                counts[plugin] = traced(held, tmp_path / "trace", verb, plugin=plugin)
                if verb == "dump":
                    held.restore(plugin=plugin).succeeded()
            more = counts[True] - counts[False]
            best[verb] = min(best.get(verb, more), more, key=Counter.total)
        if all(more.total() <= MORE_CALLS for more in best.values()):
            break
    for verb, more in best.items():
        assert more.total() <= MORE_CALLS, (verb, more)
    assert held.ask() == CONTENT


def test_library_links_no_python(scenario: MakeScenario) -> None:
    """Neither criu nor the restored process has Python's library mapped by the plugin."""
    held = scenario(attached=True).start(hold_attached)
    before = mapped_files(held.pid)
    held.dump(plugin=True).succeeded()
    held.restore(plugin=True).succeeded()
    assert mapped_files(held.pid) == before


@pytest.mark.detached
def test_nothing_left_in_the_task(scenario: MakeScenario, placement: Placement) -> None:
    """A restored task maps what it mapped, although Python ran in it for a moment."""

    def hold_detached(task: Task) -> Check:
        fd = os.open(task.path("file"), os.O_RDWR)
        task.detach()
        # asked from inside: from outside a process that waits for a signal seems not to block it
        return lambda: [os.pread(fd, 100, 0).decode(), sorted(signal.pthread_sigmask(0, []))]

    held = scenario(placement).start(hold_detached)
    before, threads = mapped_files(held.pid), os.listdir(f"/proc/{held.pid}/task")
    environment, answer = signals(held.pid), held.ask()
    held.cycle()
    assert mapped_files(held.pid) == before
    assert os.listdir(f"/proc/{held.pid}/task") == threads
    assert signals(held.pid) == environment
    assert held.ask() == answer


def mapped_files(pid: int) -> set[str]:
    """The files that a process has mapped."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {line.split(None, 5)[5] for line in lines if "/" in line}


def signals(pid: int) -> list[str]:
    """What a process ignores and catches, and what it may do."""
    wanted = ("SigIgn", "SigCgt", "Cap", "Uid", "Gid", "Groups", "Seccomp")
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return [line for line in lines if line.startswith(wanted)]
