"""Families of processes: sessions, groups, threads and a zombie, each with files on the mount."""

from __future__ import annotations

import functools
import os
import threading
from pathlib import Path

import pytest

from ..conftest import MakeScenario
from ..harness import look
from ..harness.agent import Check, Task
from ..harness.placement import Placement
from ..harness.scenario import Scenario

SESSIONS = 3


def hold_family(task: Task) -> Check:
    """Children in sessions of their own, with two threads and a child in another group each.

    A zombie of each of them waits to be reaped.
    """

    def live_with_thread(position: int) -> Check:
        """Hold a file at a position of its own, from a working directory on the mount."""
        os.chdir(task.path("dir"))
        fd = os.open("../file", os.O_RDONLY)
        os.lseek(fd, position, os.SEEK_SET)
        waiting = threading.Event()
        threading.Thread(target=waiting.wait, daemon=True).start()

        def check() -> list[object]:
            ids = [os.getpid(), os.getppid(), os.getpgrp(), os.getsid(0)]
            text = os.read(fd, 1).decode()
            os.lseek(fd, -1, os.SEEK_CUR)
            return [text, os.listdir("."), ids, threading.active_count()]

        return check

    def start_session(number: int) -> Check:
        os.setsid()

        def start_group() -> Check:
            os.setpgid(0, 0)
            return live_with_thread(number + 5)

        ask_group = task.fork(start_group)
        zombie = os.fork()
        if not zombie:
            os._exit(number)
        os.waitid(os.P_PID, zombie, os.WEXITED | os.WNOWAIT)
        check = live_with_thread(number)

        def status() -> int:
            ended = os.waitid(os.P_PID, zombie, os.WEXITED | os.WNOWAIT)
            return -1 if ended is None else ended.si_status

        return lambda: [check(), ask_group(), status()]

    asks = [task.fork(functools.partial(start_session, number)) for number in range(SESSIONS)]
    task.detach()
    return lambda: [ask() for ask in asks]


def states(held: Scenario) -> dict[int, str]:
    """Every process of the family with its state, zombies included."""
    found = {}
    for pid in look.tree(held.pid):
        stat = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        found[pid] = "zombie" if stat[0] == "Z" else "alive"
    return found


@pytest.mark.covers("file", "cwd")
def test_family(scenario: MakeScenario, placement: Placement) -> None:
    held = scenario(placement).start(hold_family)
    family, answer = states(held), held.ask()
    assert list(family.values()).count("zombie") == SESSIONS
    assert [[text, status] for (text, *_), _, status in answer] == [["0", 0], ["1", 1], ["2", 2]]
    assert [text for _, (text, *_), _ in answer] == ["5", "6", "7"]
    held.dump().succeeded()
    held.restore().succeeded()
    assert states(held) == family
    assert held.ask() == answer
