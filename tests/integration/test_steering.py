"""A CRIU that lacks what steering needs: every dump that needs no plugin works, with a warning."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from .conftest import MakeScenario
from .harness.placement import CONTENT
from .harness.programs import hold_file

pytestmark = pytest.mark.detached


def criu_without(symbol: str, directory: Path) -> None:
    """A copy of criu whose dynamic symbol has another name; no other byte moves."""
    path = shutil.which("criu")
    assert path
    text = Path(path).read_bytes()
    name = b"\0" + symbol.encode() + b"\0"
    assert name in text, f"criu has no symbol {symbol}"
    renamed = name[:-2] + b"#\0"
    copy = directory / "criu"
    copy.write_bytes(text.replace(name, renamed, 1))
    copy.chmod(0o755)


@pytest.mark.parametrize("symbol", ["add_external", "lookup_mnt_id"])
def test_symbol_missing(
    scenario: MakeScenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, symbol: str
) -> None:
    criu_without(symbol, tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    held = scenario(attached=True).start(hold_file)
    dump = held.dump(plugin=True).succeeded()
    ours = [line for line in dump.warnings() if "criu-detached" in line]
    assert len(ours) == 1 and symbol in ours[0], dump.report()
    held.restore(plugin=True).succeeded()
    assert held.ask() == CONTENT
    detached = scenario().start(hold_file)
    detached.dump(plugin=True).failed("Can't lookup mount=")
    assert detached.ask() == CONTENT


def test_restore_with_symbol_missing(
    scenario: MakeScenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images that need the plugin are refused by a CRIU that it can't steer."""
    held = scenario().start(hold_file)
    held.dump().succeeded()
    criu_without("inherit_fd_add", tmp_path)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        held.restore().failed("criu-detached.*inherit_fd_add")
    held.assert_gone()
    held.restore().succeeded()
    assert held.ask() == CONTENT
