# SPDX-License-Identifier: GPL-2.0-only
"""Who can change the code that CRIU will run as root?"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from criu_detached.command.built import PARTS
from criu_detached.command.line import FAIL, OK, Line

# Among the names of libraries that embed.so is linked with, those that are paths
_LINKED = re.compile(rb"\0(/[^\0]+\.so)(?=\0)")


def check_writers(lib: Path, program: str | None) -> Line:
    """Can someone other than root change the code that CRIU will run?"""
    subject = "writers"
    try:
        found = sorted(set(code_writers(lib)) | set(writers([Path(program)] if program else [])))
    except OSError as error:
        return Line(FAIL, subject, f"the plugin cannot be looked at: {error}")
    if not found:
        return Line(OK, subject, "only root can write the plugin and what it is linked with")
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return Line(
        FAIL,
        subject,
        f"{', '.join(found[:3])}{more}: criu runs this code as root; chown root it, chmod go-w"
        " it, or use make install",
    )


def code_writers(lib: Path) -> Iterator[str]:
    """Yield, in words, what others than root can write of a plugin and what it is linked with.

    Raises:
        OSError: something cannot be looked at.
    """
    if not lib.exists():
        return
    own = lib / "criu_detached"
    files = [lib / PARTS[0], own, *own.rglob("*")]
    yield from writers(path for path in files if os.path.lexists(path))
    if (own / "embed.so").exists():
        yield from writers(path for path in linked_files(lib) if path.exists())


def linked_files(lib: Path) -> list[Path]:
    """Return the extension modules of Python's that embed.so is linked with."""
    data = (lib / "criu_detached" / "embed.so").read_bytes()
    return [Path(os.fsdecode(path)) for path in _LINKED.findall(data)]


def writers(paths: Iterable[Path]) -> Iterator[str]:
    """Yield, in words, each of these paths, and of their parents, that not only root can write.

    Symbolic links are followed one by one, as each of them may lead elsewhere tomorrow.

    Args:
        paths: absolute, they exist.

    Raises:
        OSError: something cannot be looked at.
    """
    seen: set[Path] = set()
    left = list(paths)
    while left:
        path = left.pop()
        if path in seen:
            continue
        seen.add(path)
        found = os.lstat(path)
        fault = _fault(found)
        if fault:
            yield f"{path} {fault}"
        if stat.S_ISLNK(found.st_mode):
            left.append(_link_target(path))
        if path != path.parent:
            left.append(path.parent)


def _link_target(path: Path) -> Path:
    """Follow one symbolic link; ".." in it is resolved as the kernel does it."""
    target = path.parent.resolve() / os.readlink(path)
    return target.parent.resolve() / target.name if ".." in target.parts else target


def _fault(found: os.stat_result) -> str:
    """Return why others than root can write it, or nothing; ACLs show in the group's bits."""
    if found.st_uid:
        return f"belongs to uid {found.st_uid}"
    if stat.S_ISLNK(found.st_mode):
        return ""
    # In a sticky directory such as /tmp no one can replace what belongs to root.
    if stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX:
        return ""
    mode = stat.S_IMODE(found.st_mode)
    if mode & stat.S_IWOTH:
        return f"is writable by everyone (mode {mode:o})"
    if mode & stat.S_IWGRP:
        return f"is writable by group {found.st_gid} (mode {mode:o})"
    return ""
