"""A pre-dump copies memory while the process runs on; the dump after it is an ordinary one."""

from __future__ import annotations

import subprocess

import pytest

from .conftest import MakeScenario
from .harness import look
from .harness.criu import criu, default_plugins
from .harness.placement import CONTENT
from .harness.programs import hold_file

pytestmark = pytest.mark.detached


def test_pre_dump(scenario: MakeScenario) -> None:
    tracks = ["criu", "check", "--feature", "mem_dirty_track"]
    if subprocess.run(tracks, check=False, capture_output=True).returncode:
        pytest.skip("this kernel cannot tell which pages were written to")
    held = scenario().start(hold_file)
    before = look.seen(held.pid)
    earlier = held.work / "earlier"
    options = ["--tree", str(held.pid), *held.ground.dump_options()]
    criu("pre-dump", earlier, options, plugins=default_plugins()).succeeded()
    assert look.seen(held.pid) == before
    held.dump("--track-mem", "--prev-images-dir", "../earlier").succeeded()
    held.restore().succeeded()
    assert look.seen(held.pid) == before
    assert held.ask() == CONTENT
