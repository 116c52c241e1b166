"""In CI a test that was skipped for want of something that the ground has is a failure."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
TESTS = """
import pytest

@pytest.mark.native_only("slow")
def test_native_only():
    pass

def test_kernel():
    pytest.skip("this kernel has none")

def test_criu():
    pytest.skip("this CRIU has none")

def test_newer_criu():
    pytest.skip("needs CRIU 4.3 or newer")

@pytest.mark.skipif(True, reason="needs a tool")
def test_tool():
    pass

@pytest.fixture
def privilege():
    pytest.skip("needs root")

def test_privilege(privilege):
    pass

@pytest.mark.xfail(strict=True)
def test_xfail():
    assert False
"""
HIDDEN = {"tool", "privilege"}
ALL = {"native_only", "kernel", "criu", "newer_criu", *HIDDEN}


@pytest.mark.parametrize(
    ("ground", "defaults", "no_skip", "failed"),
    [
        ("native", "criu", "", set()),
        ("native", "criu", "1", {"criu", *HIDDEN}),
        ("native", "", "1", HIDDEN),
        ("vm", "criu kernel", "", set()),
        ("vm", "criu kernel", "1", {"kernel", "criu", *HIDDEN}),
        ("vm", "criu", "1", {"criu", *HIDDEN}),
    ],
)
def test_skips(tmp_path: Path, ground: str, defaults: str, no_skip: str, failed: set[str]) -> None:
    (tmp_path / "test_it.py").write_text(TESTS)
    settings = {
        "CRIU_DETACHED_GROUND": ground,
        "CRIU_DETACHED_DEFAULTS": defaults,
        "CRIU_DETACHED_NO_SKIP": no_skip,
    }
    skipped = ALL - failed - ({"native_only"} if ground == "native" else set())
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider"]
    command += ["-p", "tests.conftest", f"--rootdir={tmp_path}", str(tmp_path)]
    done = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        cwd=CHECKOUT,
        env=os.environ | settings,
    )
    found = re.findall(r"::test_(\w+) (PASSED|FAILED|ERROR|SKIPPED|XFAIL)", done.stdout)
    assert {name for name, result in found if result == "SKIPPED"} == skipped, done.stdout
    assert {name for name, result in found if result in ("FAILED", "ERROR")} == failed, done.stdout
    assert ("xfail", "XFAIL") in found
