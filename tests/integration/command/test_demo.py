"""The demo shows what it promises; it judges that itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).resolve().parents[3] / "demo" / "demo.py"


@pytest.mark.detached
@pytest.mark.native_only("the other tests show there what the demo shows")
def test_demo() -> None:
    run = subprocess.run([sys.executable, str(DEMO)], check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.endswith("\nThe demo worked.\n")
    assert "skipped" not in run.stdout
