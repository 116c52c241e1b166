"""What was restored can be dumped and restored again, and nothing piles up."""

from __future__ import annotations

import pytest

from ..conftest import MakeScenario
from ..files.test_fds import EACH_KIND, hold_each_kind
from ..harness.placement import Placement

ROUNDS = 10


@pytest.mark.covers("file", "directory", "o_path", "o_path_symlink", "fifo", "character_device")
def test_ten_rounds(scenario: MakeScenario, placement: Placement) -> None:
    held = scenario(placement).start(hold_each_kind)
    for _ in range(ROUNDS if placement is Placement.HOST else 3):
        held.cycle()
        assert held.ask() == EACH_KIND
