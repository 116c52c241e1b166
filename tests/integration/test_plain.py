"""What stock CRIU does without the plugin: the yardstick, and the failure that it is for."""

from __future__ import annotations

import os

import pytest

from .conftest import MakeScenario
from .harness import look
from .harness.agent import Check, Task
from .harness.placement import CONTENT, SUBDIRECTORY, Bind, Placement, Shape

pytestmark = pytest.mark.plain


def hold_file(task: Task) -> Check:
    """One file, read up to its tenth byte."""
    fd = os.open(task.path("file"), os.O_RDWR)
    os.read(fd, 10)
    task.detach()
    return lambda: [fd, os.read(fd, 100).decode()]


def test_attached_survives(
    scenario: MakeScenario, every_placement: Placement, shape: Shape
) -> None:
    made = scenario(every_placement, [Bind(shape)], attached=True).start(hold_file)
    made.cycle(plugin=False)
    fd, rest = made.ask()
    assert rest == CONTENT[10:]
    assert not look.is_detached(made.pid, fd)


@pytest.mark.detached
def test_detached_fails(scenario: MakeScenario, every_placement: Placement) -> None:
    made = scenario(every_placement, [Bind(SUBDIRECTORY)]).start(hold_file)
    made.dump(plugin=False).failed("Can't lookup mount=")
    assert look.is_running(made.pid)
    fd, rest = made.ask()
    assert look.is_detached(made.pid, fd)
    assert rest == CONTENT[10:]
