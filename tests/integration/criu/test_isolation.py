"""The environment of whoever runs criu has no say in what Python runs in it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ..conftest import MakeScenario
from ..harness.placement import CONTENT, Placement
from ..harness.programs import hold_file


def test_environment(
    scenario: MakeScenario,
    placement: Placement,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither variables nor the working directory lead Python to other code."""
    held = scenario(placement).start(hold_file)
    trap = f"open({str(tmp_path / 'sprung')!r}, 'w')\n"
    for name in ("sitecustomize", "usercustomize", "os", "re", "struct", "errno", "criu_detached"):
        (tmp_path / f"{name}.py").write_text(trap)
    user_site = f"python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    (tmp_path / ".local/lib" / user_site).mkdir(parents=True)
    (tmp_path / ".local/lib" / user_site / "usercustomize.py").write_text(trap)
    for name, value in {
        "PYTHONPATH": str(tmp_path),
        "PYTHONHOME": str(tmp_path),
        "PYTHONUSERBASE": str(tmp_path / ".local"),
        "PYTHONMALLOC": "debug",
        "PYTHONVERBOSE": "1",
        "HOME": str(tmp_path),
        "LC_ALL": "xx_XX.none",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    held.cycle()
    assert not (tmp_path / "sprung").exists()
    assert held.ask() == CONTENT


def test_closed_stdio(scenario: MakeScenario) -> None:
    """A daemon may run criu with its standard files closed; Python does not mind."""
    held = scenario().start(hold_file)
    shell = ["sh", "-c", '"$@" <&- >&- 2>&-', "sh"]
    held.dump(prefix=shell).succeeded()
    held.restore(prefix=shell).succeeded()
    assert held.ask() == CONTENT
