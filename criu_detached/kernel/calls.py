# SPDX-License-Identifier: GPL-2.0-only
"""What a system call gives back, and a buffer for one."""

from __future__ import annotations

import os

from criu_detached._kernel import ffi
from criu_detached.kernel.fds import Fd


def checked(result: int, call: str) -> int:
    """Return what a call gave.

    Args:
        result: of the C side: -errno where the kernel refused.
        call: its name, for the message.

    Raises:
        OSError: the kernel refused.
    """
    if result < 0:
        raise OSError(-result, f"{call}: {os.strerror(-result)}")
    return result


def checked_fd(result: int, call: str) -> Fd:
    """Return the fd that a call gave, the caller's; the rest is as of checked()."""
    return Fd(checked(result, call))


def zeroed(size: int) -> memoryview:
    """Return a buffer of zeroes; none of its pages takes memory before it is written to."""
    return memoryview(ffi.buffer(ffi.new("char[]", size)))
