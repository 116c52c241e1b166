"""What stock CRIU does without the plugin: the yardstick, and the failure that it is for."""

from __future__ import annotations

import pytest

from ..conftest import MakeScenario
from ..harness import look
from ..harness.placement import CONTENT, SUBDIRECTORY, Bind, Placement, Shape
from ..harness.programs import hold_position

pytestmark = pytest.mark.plain


def test_attached_survives(
    scenario: MakeScenario, every_placement: Placement, shape: Shape
) -> None:
    made = scenario(every_placement, [Bind(shape)], attached=True).start(hold_position)
    made.cycle(plugin=False)
    fd, rest = made.ask()
    assert rest == CONTENT[10:]
    assert not look.is_detached(made.pid, fd)


@pytest.mark.detached
def test_detached_fails(scenario: MakeScenario, every_placement: Placement) -> None:
    made = scenario(every_placement, [Bind(SUBDIRECTORY)]).start(hold_position)
    made.dump(plugin=False).failed("Can't lookup mount=")
    assert look.is_running(made.pid)
    fd, rest = made.ask()
    assert look.is_detached(made.pid, fd)
    assert rest == CONTENT[10:]
