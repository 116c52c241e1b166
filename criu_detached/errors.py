# SPDX-License-Identifier: GPL-2.0-only
"""The one exception of the package, and the quoting of names in messages."""

from __future__ import annotations

import errno
import os

_SCARCE = {errno.ENOMEM, errno.EMFILE, errno.ENFILE}
_LONGEST = 1000  # characters of a name in a message


class DetachedError(Exception):
    """A file or mount that cannot be dumped or restored faithfully.

    The text is one line for CRIU's log: what is wrong, with what, and what to do.
    """

    def __init__(self, text: str, *, errno: int = 0) -> None:
        super().__init__(text)
        self._errno = errno

    @property
    def errno(self) -> int:
        """The number that was given, or that of the error it is raised from; 0 where none is."""
        cause = self.__cause__
        return self._errno or (getattr(cause, "errno", 0) or 0)


def quote(name: bytes) -> str:
    """Return a name of the dumped system for a message: one line, control characters escaped.

    A long one is cut in the middle, for the log has no room for it and for what is wrong with it
    (LOG_BUF_LEN, criu/log.c). No codec is looked up, so it is safe in a restored task.
    """
    text = repr(name).lstrip("b")[1:-1]
    if len(text) <= _LONGEST:
        return text
    half = _LONGEST // 2
    return f"{text[:half]}...{text[-half:]}"


def reason(number: int) -> str:
    """Return what an error number means, as strerror(3) has it."""
    return os.strerror(number)


def why(error: OSError) -> str:
    """Return what the error number of an error means; its text where it has none."""
    return reason(error.errno) if error.errno else str(error)


def is_shortage(error: BaseException) -> bool:
    """Tell what may hit any line: criu is out of memory or of fds."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _SCARCE)
