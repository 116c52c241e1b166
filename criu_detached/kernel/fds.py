# SPDX-License-Identifier: GPL-2.0-only
"""Fds that have an owner, and what /proc/self/fd shows of an fd and does with it.

The functions that go through /proc/self/fd are for CRIU's own process: in a restored task /proc
is the task's.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self


class Fd(int):
    """An open fd with an owner: an int that closes itself at the end of a ``with`` block.

    It goes wherever an int goes. Nothing is closed behind the owner's back: one that is dropped
    without close() stays open, as an int does.
    """

    _owned = True  # its instances have a False of their own once they were closed or released

    @classmethod
    def open(cls, path: str | bytes, flags: int, dir_fd: int | None = None) -> Self:
        """open(2), or openat(2) with a directory; O_CLOEXEC is added.

        Args:
            path: of the file.
            flags: O_*.
            dir_fd: where a relative path starts; None is the working directory.

        Raises:
            OSError: the kernel refuses it.
        """
        return cls(os.open(path, flags | os.O_CLOEXEC, dir_fd=dir_fd))

    def __enter__(self) -> Self:
        """Return the fd, which close() closes at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the fd, unless that is done or it was handed on."""
        self.close()

    def close(self) -> None:
        """Close the fd; a second time, or after release(), do nothing."""
        if self._owned:
            self._owned = False
            os.close(self)

    def release(self) -> Self:
        """Hand the fd on: return one that the caller owns, and let go of this one."""
        self._owned = False
        return type(self)(self)


class Fds:
    """The owner of several fds: closes them together, the last first."""

    __slots__ = ("_fds",)

    def __init__(self) -> None:
        self._fds: list[Fd] = []

    def __enter__(self) -> Self:
        """Return the owner, which close() empties at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close what was added and not released."""
        self.close()

    def add(self, fd: int) -> int:
        """Take an fd over, and return its number; an Fd has this owner instead of itself."""
        self._fds.append(fd.release() if isinstance(fd, Fd) else Fd(fd))
        return int(fd)

    def release(self) -> list[Fd]:
        """Hand all of them on, in the order in which they were added."""
        fds, self._fds = self._fds, []
        return fds

    def close(self) -> None:
        """Close all of them; a second time do nothing."""
        for fd in reversed(self.release()):
            fd.close()


def magic_link(fd: int) -> bytes:
    """Return the path that leads to an open file, wherever that is (proc_pid_fd(5))."""
    return b"/proc/self/fd/%d" % fd


def link_of(fd: int) -> bytes:
    """Return the kernel's path of an open file: what readlink(2) says of its magic link."""
    return os.readlink(magic_link(fd))


def reopen(fd: int, flags: int) -> Fd:
    """Open the file of an fd again, with other flags; O_CLOEXEC is added.

    Args:
        fd: the file's; an O_PATH fd will do.
        flags: O_*.

    Raises:
        OSError: the kernel refuses it, as it would refuse open(2) of the file's path.
    """
    return Fd.open(magic_link(fd), flags)
