"""The core set names tests that exist, each once."""

from __future__ import annotations

import ast
from pathlib import Path

DIRECTORY = Path(__file__).resolve().parents[1] / "integration"


def test_core_set() -> None:
    lines = (DIRECTORY / "core.txt").read_text().splitlines()
    chosen = [line for line in lines if line and not line.startswith("#")]
    assert len(chosen) == len(set(chosen))
    for line in chosen:
        name, _, test = line.partition("::")
        tree = ast.parse((DIRECTORY / name).read_text())
        tests = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
        assert not test or test in tests, line
