"""Files as deep in directories as a path is long."""

from __future__ import annotations

import os
from typing import Any

import pytest

from ..conftest import MakeScenario
from ..harness.agent import Check, Task
from ..harness.placement import SUBDIRECTORY, Bind, Placement
from ..soleheld import sole


def hold_deep(task: Task, depth: int) -> Check:
    """Two files beneath many directories; one is deleted."""
    os.chdir(task.path())
    for _ in range(depth):
        os.mkdir("d")
        os.chdir("d")
    fds = [os.open(name, os.O_RDWR | os.O_CREAT) for name in ("kept", "deleted")]
    for fd in fds:
        os.write(fd, b"deep")
    os.unlink("deleted")
    os.chdir("/")
    task.detach()

    def check() -> list[Any]:
        links = [os.readlink(f"/proc/self/fd/{fd}") for fd in fds]
        return [[os.pread(fd, 10, 0).decode() for fd in fds], [link.count("/") for link in links]]

    return check


@pytest.mark.parametrize("alone", [False, True])
def test_deep(scenario: MakeScenario, placement: Placement, alone: bool) -> None:
    """Of a filesystem that is made anew, too."""
    held = scenario(placement, [Bind(SUBDIRECTORY)]).start(hold_deep, depth=1900)
    assert held.ask() == [["deep", "deep"], [1901, 1901]]
    if alone:
        sole(held)
    held.cycle()
    assert held.ask() == [["deep", "deep"], [1901, 1901]]
