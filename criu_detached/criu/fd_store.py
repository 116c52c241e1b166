# SPDX-License-Identifier: GPL-2.0-only
"""Fds that CRIU keeps for the restored tasks: in its fd store, and as inherited ones."""

from __future__ import annotations

from criu_detached.errors import DetachedError
from criu_detached.kernel.fds import Fd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class FdStore:
    """Typed calls into CRIU. Each raises DetachedError when CRIU refuses."""

    def __init__(self, functions: Any) -> None:
        """Take what the shim found in CRIU.

        Args:
            functions: struct criu_host (plugin/embed/host.h).
        """
        self._criu = functions

    def add(self, fd: int) -> int:
        """Keep an fd for all tasks, in CRIU's fd store; returns its id there.

        Args:
            fd: it stays the caller's.
        """
        return _checked(self._criu.fdstore_add(fd), "CRIU's fd store (add)")

    def get(self, number: int) -> Fd:
        """Return a new fd of one that was kept; the caller's.

        Args:
            number: its id.
        """
        return Fd(_checked(self._criu.fdstore_get(number), "CRIU's fd store (get)"))

    def add_inherited(self, fd: Fd, key: bytes) -> None:
        """Hand an fd on to CRIU, before the tasks exist, for get_inherited in them.

        Args:
            fd: CRIU's from now on; it stays the caller's if CRIU refuses.
            key: what it is found by.
        """
        _checked(self._criu.inherit_fd_add(fd, key), "CRIU's inherited fds (add)")
        fd.release()

    def get_inherited(self, key: bytes) -> Fd:
        """Return a new fd of one that was handed on; the caller's.

        Args:
            key: what it was handed on with.
        """
        return Fd(_checked(self._criu.inherit_fd_get(key), "CRIU's inherited fds (get)"))


def _checked(result: int, what: str) -> int:
    if result < 0:
        raise DetachedError(f"{what} failed; CRIU's log says why")
    return result
