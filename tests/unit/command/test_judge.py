"""What came of the trial."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from criu_detached.command import judge
from criu_detached.command.line import FAIL

READY = f"(00.002) {judge.READY}"


def run(status: int = 0, *lines: str) -> dict[str, Any]:
    return {"status": status, "log": "\n".join(lines)}


GOOD = {"dump": run(0, READY), "recorded": True, "restore": run(), "restored": True}


def test_trial_good() -> None:
    assert judge.judge(GOOD) == ""


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"setup": "mount: permission denied"}, "mount: permission denied"),
        ({"dump": run()}, "exit status 0; it said nothing"),
        (
            {"dump": run(0, "(00.1) Warn  criu-detached: this CRIU has no function fdstore_add")},
            "this CRIU has no function fdstore_add",
        ),
        (
            {"dump": run(1, "Error (criu/plugin.c:99): Failed to load", "Error (b): Dumping")},
            "Error (criu/plugin.c:99): Failed to load",
        ),
        (
            {
                "dump": run(
                    1,
                    "Error (criu/util.c:1): rlimit: Can't setup RLIMIT_NOFILE for self",
                    READY,
                    "Error (criu/x.c:2): Dumping FAILED.",
                )
            },
            "the dump failed (Error (criu/x.c:2)",
        ),
        (
            {"dump": run(1, READY, "ModuleNotFoundError: No module named 'criu_detached.dump'")},
            "No module named 'criu_detached.dump'",
        ),
        (
            {"dump": run(1, READY, "Error criu-detached: OSError: x; a defect of the plugin")},
            "name the kernel",
        ),
        ({"recorded": False, "restore": None}, "did not record"),
        (
            {"restore": run(1, "Error criu-detached: can't restore")},
            "restore failed (Error criu-detached: can't restore)",
        ),
        ({"restored": False}, "without its file"),
    ],
)
def test_trial_faults(change: dict[str, Any], text: str) -> None:
    assert text in judge.judge({**GOOD, **change})


def test_trial_needs_root(monkeypatch: pytest.MonkeyPatch, plugin: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    line = judge.check_trial(plugin, "criu")
    assert line.state == FAIL and "as root" in line.text
