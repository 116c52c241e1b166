"""Which CRIU there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from criu_detached.command import programs
from criu_detached.command.line import FAIL, OK


def fake_criu(directory: Path, script: str) -> str:
    """A program named criu."""
    path = directory / "criu"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_criu_absent(tmp_path: Path) -> None:
    absent = str(tmp_path / "criu")
    line = programs.check_criu(programs.find_criu(absent), absent)
    assert line.state == FAIL and absent in line.text and "install CRIU" in line.text


@pytest.mark.parametrize(
    ("version", "state"),
    [("3.19", FAIL), ("4.0", FAIL), ("4.1", OK), ("4.1.1", OK), ("4.3-rc1", OK), ("10.0", OK)],
)
def test_criu_version(tmp_path: Path, version: str, state: str) -> None:
    program = fake_criu(tmp_path, f"echo 'Version: {version}'; echo GitID: v{version}")
    line = programs.check_criu(program, None)
    assert line.state == state and f"version {version}" in line.text


@pytest.mark.parametrize("script", ["exit 0", "echo none; exit 1", "echo Version: new"])
def test_criu_without_version(tmp_path: Path, script: str) -> None:
    line = programs.check_criu(fake_criu(tmp_path, script), None)
    assert line.state == FAIL and "tells no version" in line.text


def test_criu_cannot_run(tmp_path: Path) -> None:
    program = fake_criu(tmp_path, "")
    Path(program).write_text("#!/no/such/interpreter\n")
    line = programs.check_criu(program, None)
    assert line.state == FAIL and "--version fails" in line.text
