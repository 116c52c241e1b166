"""The core set names tests that exist, each once."""

from __future__ import annotations

import ast
from pathlib import Path

DIRECTORY = Path(__file__).resolve().parents[1] / "integration"


def lines_of(name: str) -> list[list[str]]:
    lines = (DIRECTORY / name).read_text().splitlines()
    return [line.split(" ") for line in lines if line and not line.startswith("#")]


def test_core_set() -> None:
    chosen = [line[0] for line in lines_of("core.txt")]
    assert len(chosen) == len(set(chosen))
    for line in chosen:
        name, _, test = line.partition("::")
        tree = ast.parse((DIRECTORY / name).read_text())
        tests = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
        assert not test or test in tests, line


def test_core_set_of_the_vm() -> None:
    """Of each subject there is something."""
    lines = lines_of("core.txt")
    assert {tuple(line[1:]) for line in lines} == {(), ("vm",)}
    subjects = {line[0].split("/")[0] for line in lines}
    assert {line[0].split("/")[0] for line in lines if line[1:]} == subjects - {"command"}


def test_durations() -> None:
    """By which the VMs share the tests; a file that is not listed counts as an average one."""
    root = DIRECTORY.parents[1]
    for seconds, name in lines_of("durations.txt"):
        assert float(seconds) >= 0
        assert (root / name).exists(), name
