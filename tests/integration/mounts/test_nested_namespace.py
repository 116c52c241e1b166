"""A task in a mount namespace of its own, beneath the dumped one: its bind sources are its own."""

from __future__ import annotations

import os
import sys

import pytest

from ..conftest import MakeScenario
from ..harness import look
from ..harness.agent import Check, Task
from ..harness.placement import CONTENT, Placement


def hold_in_nested(task: Task) -> Check:
    """The child detaches the mount in its own namespace; the parent's stays attached."""

    def child() -> Check:
        if sys.version_info >= (3, 12):
            os.unshare(os.CLONE_NEWNS)
        fd = os.open(task.path("file"), os.O_RDONLY)
        task.detach()
        return lambda: os.pread(fd, 100, 0).decode()

    return task.fork(child)


def hold_passed_on(task: Task) -> Check:
    """The child holds what the parent opened in another namespace than the child's."""
    fd = os.open(task.path("file"), os.O_RDONLY)

    def child() -> Check:
        if sys.version_info >= (3, 12):
            os.unshare(os.CLONE_NEWNS)
        return lambda: os.pread(fd, 100, 0).decode()

    ask = task.fork(child)
    os.close(fd)
    task.detach()
    return ask


@pytest.mark.covers("file")
def test_own_mount(scenario: MakeScenario) -> None:
    held = scenario(Placement.NAMESPACE).start(hold_in_nested)
    held.cycle()
    assert held.ask() == CONTENT


@pytest.mark.covers("file")
def test_passed_on(scenario: MakeScenario) -> None:
    held = scenario(Placement.NAMESPACE).start(hold_passed_on)
    held.cycle()
    assert held.ask() == CONTENT
    assert len(look.tree(held.pid)) == 2
