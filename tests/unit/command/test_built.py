"""Is all of the plugin there?"""

from __future__ import annotations

from pathlib import Path

import pytest

from criu_detached.command import built
from criu_detached.command.line import FAIL, OK, Line


def test_complete(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert built.check_parts(plugin) == Line(
        OK, "plugin", f"{plugin} is complete; give criu the option --libdir {plugin}"
    )
    monkeypatch.setattr(built, "DEFAULT_LIB", plugin)
    assert "criu finds it by itself" in built.check_parts(plugin).text


@pytest.mark.parametrize("part", built.PARTS)
def test_part_missing(plugin: Path, part: str) -> None:
    next(plugin.glob(part)).unlink()
    line = built.check_parts(plugin)
    assert line.state == FAIL and part in line.text and "make plugin" in line.text


def test_nothing_there(tmp_path: Path) -> None:
    line = built.check_parts(tmp_path / "absent")
    assert line.state == FAIL and "there is none" in line.text


def test_default_lib(monkeypatch: pytest.MonkeyPatch, plugin: Path, tmp_path: Path) -> None:
    own = plugin / "criu_detached" / "lib" / "criu_detached" / "command" / "built.py"
    monkeypatch.setattr(built, "__file__", str(own))
    assert built.default_lib() == plugin
    monkeypatch.setattr(built, "__file__", "/built.py")
    assert built.default_lib() == built.DEFAULT_LIB
