# SPDX-License-Identifier: GPL-2.0-only
"""Numbers that the restored tasks share (plugin/kernel/shared.h)."""

from __future__ import annotations

from criu_detached.errors import DetachedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class SharedNumbers:
    """Memory of all tasks: entries of a lock and a number each."""

    def __init__(self, lib: Any) -> None:
        """Share nothing yet.

        Args:
            lib: functions of the embedded module.
        """
        self._lib = lib

    def alloc(self, count: int) -> None:
        """Make the entries, in CRIU's process, before there is a task.

        Args:
            count: how many.

        Raises:
            DetachedError: there is no memory.
        """
        if self._lib.shared_alloc(count):
            raise DetachedError("no memory to share between the restored tasks")

    def locked(self, index: int) -> Locked:
        """Hold the lock of an entry for the length of a ``with`` block."""
        return Locked(self, index)

    def lock(self, index: int) -> None:
        """Take the lock of an entry; use locked()."""
        self._lib.shared_lock(index)

    def unlock(self, index: int) -> None:
        """Let go of the lock of an entry; use locked()."""
        self._lib.shared_unlock(index)

    def get(self, index: int) -> int:
        """Return the number of an entry; -1 at first."""
        return int(self._lib.shared_get(index))

    def set(self, index: int, value: int) -> None:
        """Set the number of an entry.

        Args:
            index: which.
            value: not negative.
        """
        self._lib.shared_set(index, value)


class Locked:
    """The lock of an entry, held for the length of a ``with`` block."""

    __slots__ = ("_index", "_numbers")

    def __init__(self, numbers: SharedNumbers, index: int) -> None:
        self._numbers = numbers
        self._index = index

    def __enter__(self) -> None:
        self._numbers.lock(self._index)

    def __exit__(self, *_: object) -> None:
        self._numbers.unlock(self._index)
