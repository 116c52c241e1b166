# SPDX-License-Identifier: GPL-2.0-only
"""Programs that root finds, and which CRIU there is."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

from criu_detached.command.line import FAIL, OK, Line

OLDEST_CRIU = (4, 1)
# Root's PATH may lack them, for instance under su.
SBIN = "/usr/local/sbin:/usr/sbin:/sbin"


def check_criu(program: str | None, asked: str | None) -> Line:
    """Is there a CRIU, and is it new enough?

    Args:
        program: its path.
        asked: what the user said, if anything.
    """
    newer = "install CRIU 4.1 or newer, or name it with --criu PATH"
    if program is None:
        return Line(FAIL, "criu", f"{asked or 'criu'} is not an installed program: {newer}")
    try:
        version = criu_version(program)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Line(FAIL, "criu", f"{program} --version fails ({error}): {newer}")
    if not version:
        return Line(FAIL, "criu", f"{program} --version tells no version: {newer}")
    major, minor = version.split(".")[:2]
    if (int(major), int(re.match(r"\d+", minor)[0])) < OLDEST_CRIU:  # type: ignore[index]
        return Line(FAIL, "criu", f"{program} is version {version}, too old: {newer}")
    return Line(OK, "criu", f"{program}, version {version}")


def find_criu(criu: str | None) -> str | None:
    """Return the absolute path of the program, or None."""
    return find_program(criu or "criu")


def criu_version(program: str) -> str:
    """Return what ``criu --version`` says, for instance "4.2.1"; empty if it says none.

    Raises:
        OSError: it cannot be run.
        subprocess.TimeoutExpired: it hangs.
    """
    said = said_of_version(program)
    found = re.search(r"^Version:\s*(\d+\.\d+\S*)", said, re.MULTILINE)
    return found[1] if found else ""


def said_of_version(program: str, *, check: bool = False) -> str:
    """Return what a program prints when it is asked for its version.

    Args:
        program: its path.
        check: it has to succeed.

    Raises:
        OSError: it cannot be run.
        subprocess.SubprocessError: it hangs, or fails and should not.
    """
    return subprocess.run(
        [program, "--version"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=check,
        text=True,
        errors="replace",
    ).stdout


def find_program(name: str) -> str | None:
    """Return the absolute path of a program that root finds, or None."""
    path = f"{os.environ.get('PATH', os.defpath)}:{SBIN}"
    found = shutil.which(name, path=path)
    return os.path.abspath(found) if found else None
