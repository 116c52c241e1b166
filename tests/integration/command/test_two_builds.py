"""A plugin whose parts are of two builds, as when an update by hand forgot one of them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "plugin"))

import build

from ..conftest import MakeScenario
from ..harness.criu import default_plugins
from ..harness.placement import CONTENT
from ..harness.programs import hold_file

pytestmark = [
    pytest.mark.detached,
    pytest.mark.native_only("compilers take minutes under emulation, and no kernel matters here"),
]

REFUSED = "criu-detached: criu_detached.so and .*/embed.so are of two builds: build or install"


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """The plugin with a shim of another build."""
    lib = tmp_path / "lib"
    shutil.copytree(default_plugins(), lib)
    build.build_shim(lib / "criu_detached.so", build.build_id() ^ 1)
    return lib


def test_refused(scenario: MakeScenario, mixed: Path) -> None:
    """Neither direction goes on, the process lives, and what the line advises is enough."""
    held = scenario().start(hold_file)
    held.dump(plugins=mixed).failed(REFUSED)
    assert held.ask() == CONTENT
    held.dump().succeeded()
    held.restore(plugins=mixed).failed(REFUSED)
    held.assert_gone()
    build.build(mixed)
    held.restore(plugins=mixed).succeeded()
    assert held.ask() == CONTENT
    held.dump(plugins=mixed).succeeded()


def test_check_says_so(mixed: Path) -> None:
    command = [str(mixed / "criu_detached/criu-detached"), "check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "are of two builds" in done.stdout, done.stdout + done.stderr


def test_nothing_detached(scenario: MakeScenario, mixed: Path) -> None:
    """Dumps that need no Python notice nothing."""
    held = scenario(attached=True).start(hold_file)
    held.dump(plugins=mixed, plugin=True).succeeded()
    held.restore(plugins=mixed, plugin=True).succeeded()
    assert held.ask() == CONTENT
