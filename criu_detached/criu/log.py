# SPDX-License-Identifier: GPL-2.0-only
"""CRIU's log. Until a host is set, as in tests and tools, lines go to standard error."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# criu/include/log.h
ERROR, WARN, INFO, DEBUG = 1, 2, 3, 4


def _to_stderr(level: int, text: str) -> None:
    sys.stderr.write(f"criu-detached: {text}\n")


_write: Callable[[int, str], None] = _to_stderr


def set_writer(write: Callable[[int, str], None]) -> None:
    """Send all further lines to a function of level and text."""
    global _write
    _write = write


def error(text: str) -> None:
    """Log what makes the dump or restore fail."""
    _write(ERROR, text)


def warn(text: str) -> None:
    """Log what the user should know of, although the work goes on."""
    _write(WARN, text)


def info(text: str) -> None:
    """Log a decision."""
    _write(INFO, text)
