# SPDX-License-Identifier: GPL-2.0-only
"""The modules ``os`` and ``stat`` inside CRIU: their parts in C, under their names.

The library's take a tenth of the time that Python needs to start, for abstract classes, a copy of
the environment and tables that nothing here asks for. This is imported before all that imports
them (plugin/embed/start_python.c). tests/unit/test_structure.py holds the package to it.
"""

from __future__ import annotations

import _stat
import sys
from posix import *  # noqa: F403

SEEK_SET, SEEK_CUR, SEEK_END = 0, 1, 2


def fsencode(name: str) -> bytes:
    """The bytes of a name that a system call gave as text."""
    return name.encode("utf-8", "surrogateescape")


sys.modules["os"], sys.modules["stat"] = sys.modules[__name__], _stat
