# SPDX-License-Identifier: GPL-2.0-only
"""A trial dump and restore, for ``criu-detached check``, in a mount namespace of its own.

Run as ``unshare --mount --propagation private python3 -I trial.py CRIU LIB WORK``, so the
machine sees none of its mounts. It prints a report as JSON and judges nothing (see
judge.py). This file is a script: it imports the standard library alone.

A PID namespace of its own would spare it the cleaning up, but would be no true trial: from
within one, the kernel shows no other mount namespaces (may_see_all_namespaces).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

CONTENT = "held on a detached mount\n"
RECORD_FILE = "criu-detached.img"  # of plugin/shim/dump.c
CRIU_SECONDS = 120
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def _tool(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, errors="replace")


def hold_file(work: Path) -> subprocess.Popen[bytes]:
    """Start a process whose standard input is a file on a lazily unmounted bind mount.

    Args:
        work: an empty directory; a tmpfs is mounted there, with the bind source in it.

    Raises:
        OSError: a tool is absent.
        subprocess.CalledProcessError: a mount was refused.
    """
    _tool("mount", "--no-mtab", "-t", "tmpfs", "-o", "mode=700", "criu-detached", str(work))
    for name in ("source", "point", "images"):
        (work / name).mkdir()
    (work / "source" / "file").write_text(CONTENT)
    _tool("mount", "--no-mtab", "--bind", str(work / "source"), str(work / "point"))
    with open(work / "point" / "file", encoding="utf-8") as held:
        process = subprocess.Popen(
            ["sleep", "600"],
            stdin=held,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # CRIU dumps whole sessions
            cwd="/",
        )
    _tool("umount", "--no-mtab", "--lazy", str(work / "point"))
    return process


def run_criu(criu: str, verb: str, lib: str, images: Path, *options: str) -> dict[str, object]:
    """Run criu with the plugin directory; return its exit status and all that it said."""
    log = images / f"{verb}.log"
    command = [criu, verb, "--images-dir", str(images), "--log-file", str(log), "-v4"]
    command += ["--manage-cgroups=ignore", "--lib", lib, *options]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=CRIU_SECONDS,
    )
    said = log.read_bytes() if log.exists() else b""
    text = (said + b"\n" + done.stdout).decode(errors="replace")
    return {"status": done.returncode, "log": text}


def came_back(pid: int) -> bool:
    """Tell whether a restored process has its file, and on a mount of no namespace."""
    info = Path(f"/proc/{pid}/fdinfo/0").read_text()
    (mnt_id,) = (line.split()[1] for line in info.splitlines() if line.startswith("mnt_id:"))
    attached = {line.split()[0] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    return Path(f"/proc/{pid}/fd/0").read_text() == CONTENT and mnt_id not in attached


def trial(criu: str, lib: str, work: Path) -> dict[str, object]:
    """Dump and restore a process; what comes after a failed step is left out.

    Args:
        criu: the program.
        lib: the plugin directory.
        work: an empty directory.

    Returns:
        dump and restore: status and log; recorded: the plugin wrote its record file;
        restored: the process has its file again.
    """
    process = hold_file(work)
    images = work / "images"
    report: dict[str, object] = {}
    try:
        report["dump"] = dump = run_criu(criu, "dump", lib, images, "--tree", str(process.pid))
        report["recorded"] = (images / RECORD_FILE).exists()
        if dump["status"] or not report["recorded"]:
            return report
    finally:
        # It is gone when the dump worked, but its pid is free only once it is reaped.
        process.kill()
        process.wait()
    try:
        report["restore"] = run_criu(criu, "restore", lib, images, "--restore-detached")
        report["restored"] = came_back(process.pid)
    except (OSError, ValueError):
        report["restored"] = False
    finally:
        end_child(process.pid)
    return report


def end_child(pid: int) -> None:
    """End a restored process. It has become a child of this one, if it is there at all."""
    with contextlib.suppress(ChildProcessError):
        if os.waitpid(pid, os.WNOHANG) == (0, 0):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def main() -> int:
    """Command line: ``trial.py CRIU LIB WORK``; prints the report."""
    criu, lib, work = sys.argv[1:]
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    report: dict[str, object]
    try:
        report = trial(criu, lib, Path(work))
    except subprocess.CalledProcessError as error:
        report = {"setup": f"{error.cmd[0]}: {(error.stderr or '').strip()}"}
    except (OSError, subprocess.TimeoutExpired) as error:
        report = {"setup": str(error)}
    json.dump(report, sys.stdout)
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(main())
