# SPDX-License-Identifier: GPL-2.0-only
"""Runs the trial, and judges what came of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from criu_detached.command.built import REBUILD
from criu_detached.command.line import FAIL, OK, Line

TRIAL = Path(__file__).with_name("trial.py")
READY = "criu-detached: ready to dump"  # init_dump in plugin/shim/dump.c


def check_trial(lib: Path, program: str) -> Line:
    """Dump and restore a process that holds a file on a detached mount (see trial.py)."""
    subject = "trial"
    if os.geteuid():
        return Line(FAIL, subject, "not made, for only root can dump: run this command as root")
    try:
        report = run_trial(lib, program)
    except (OSError, ValueError) as error:
        return Line(FAIL, subject, f"it could not be made: {error}")
    fault = judge(report)
    if fault:
        return Line(FAIL, subject, fault)
    return Line(OK, subject, "criu dumped and restored a process with a file on a detached mount")


def run_trial(lib: Path, program: str) -> dict[str, Any]:
    """Run trial.py in a mount namespace of its own; return its report.

    Raises:
        OSError: a tool is absent.
        ValueError: the namespace could not be made, or the report is none.
    """
    command = ["unshare", "--mount", "--propagation", "private"]
    with tempfile.TemporaryDirectory(prefix="criu-detached-check-") as work:
        done = subprocess.run(
            [*command, sys.executable, "-I", str(TRIAL), program, str(lib.resolve()), work],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
        )
    if not done.stdout:
        raise ValueError(f"unshare: {_last_line(done.stderr) or 'no answer'}")
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def judge(report: dict[str, Any]) -> str:
    """Return what went wrong in a trial and what to do about it; nothing if it went well.

    Args:
        report: of trial.py.
    """
    if "setup" in report:
        return f"it could not be made: {report['setup']}"
    dump, restore = report["dump"], report.get("restore")
    if READY not in dump["log"]:
        return (
            f"this criu did not take the plugin in ({_reason(dump)}): use CRIU 4.1 to 4.3 as a"
            f" distribution has it, or {REBUILD}"
        )
    if dump["status"]:
        return f"criu took the plugin in, but the dump failed ({_reason(dump)}): {_advice(dump)}"
    if restore is None:
        return f"the plugin did not record the file on a detached mount: {REBUILD}"
    if restore["status"]:
        return f"the dump worked, but the restore failed ({_reason(restore)}): {_advice(restore)}"
    if not report["restored"]:
        return f"criu restored the process without its file: {REBUILD}"
    return ""


def _advice(run: dict[str, Any]) -> str:
    """Return what to do about a run that failed: it is the plugin's fault, or CRIU's."""
    reason = _reason(run)
    if "defect of the plugin" in reason:  # entry.py
        return "name the kernel and the CRIU above, too"
    own = "criu-detached" in reason or not reason.startswith("Error")
    return REBUILD if own else "see criu check, and whether the same fails without the plugin"


def _reason(run: dict[str, Any]) -> str:
    """Return the line of a criu run that tells most."""
    # CRIU raises its own limit first, and goes on where it may not.
    lines = [line for line in run["log"].splitlines() if "RLIMIT_NOFILE" not in line]
    for pattern in (
        r"^[\w.]+Error: .*",  # of Python, before the package can write to CRIU's log
        r"(?:Error|Warn) +criu-detached: .*",
        r"Error \(.*",
    ):
        for line in lines:
            found = re.search(pattern, line)
            if found:
                return found[0].strip()
    return f"exit status {run['status']}; {_last_line(run['log']) or 'it said nothing'}"


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""
