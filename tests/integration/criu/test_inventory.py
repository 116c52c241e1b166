"""Images that need the plugin say so themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..conftest import MakeScenario
from ..harness.placement import CONTENT
from ..harness.programs import hold_file


@pytest.mark.detached
def test_restore_without_plugin(scenario: MakeScenario, tmp_path: Path) -> None:
    """CRIU looks at its inventory only when it has a plugin directory; it may be an empty one."""
    held = scenario().start(hold_file)
    held.dump().succeeded()
    held.restore(plugin=True, plugins=tmp_path).failed("criu.detached")
    held.assert_gone()
    held.restore().succeeded()
    assert held.ask() == CONTENT


def test_plugin_not_needed(scenario: MakeScenario, tmp_path: Path) -> None:
    """Images made with the plugin loaded, but without its help, are restored without it."""
    held = scenario(attached=True).start(hold_file)
    held.dump(plugin=True).succeeded()
    held.restore(plugin=True, plugins=tmp_path).succeeded()
    assert held.ask() == CONTENT


@pytest.mark.detached
def test_stale_records(scenario: MakeScenario) -> None:
    """Records of an earlier dump into the same directory are no part of the next one."""
    first = scenario().start(hold_file)
    first.dump("--leave-running").succeeded()
    second = scenario(attached=True).start(hold_file)
    second.images = first.images
    assert (second.images / "criu-detached.img").exists()
    second.dump(plugin=True).succeeded()
    assert not (second.images / "criu-detached.img").exists()
    second.restore(plugin=True).succeeded()
    assert second.ask() == CONTENT
