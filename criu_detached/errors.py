# SPDX-License-Identifier: GPL-2.0-only
"""The one exception of the package, and the quoting of names in messages."""

from __future__ import annotations

import os


class DetachedError(Exception):
    """A file or mount that cannot be dumped or restored faithfully.

    The text is one line for CRIU's log: what is wrong, with what, and what to do.
    """


def quote(name: bytes) -> str:
    """Return a name of the dumped system for a message: one line, control characters escaped.

    No codec is looked up, so it is safe in a restored task.
    """
    return repr(name).lstrip("b")[1:-1]


def reason(errno: int) -> str:
    """Return what an error number means, as strerror(3) has it."""
    return os.strerror(errno)
