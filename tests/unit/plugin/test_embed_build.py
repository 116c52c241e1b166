"""What connects Python inside CRIU with C (plugin/embed/embed_build.py)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "plugin"))

from embed import embed_build


@pytest.mark.parametrize("name", ["file_facts", "criu_host", "embedded", "socket_answer"])
def test_structures_are_known(name: str) -> None:
    """Python reads their fields; what is declared alone has none."""
    kind = embed_build.builder("", [], "").typeof(f"struct {name}")
    assert kind.fields
