# SPDX-License-Identifier: GPL-2.0-only
"""The inotify and fanotify watches of processes, as fdinfo shows them."""

from __future__ import annotations

import os

from criu_detached.dump.observe.processes import fdinfo
from criu_detached.dump.observe.procfs import below, is_end
from criu_detached.kernel import walk
from criu_detached.kernel.devnum import kdev_decode
from criu_detached.kernel.walk import Walker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from criu_detached.dump.observe.machine import Machine


class Watch:
    """A watch of an inode."""

    __slots__ = ("dev", "handle", "ino")

    def __init__(self, line: bytes) -> None:
        """Read it from a line of fdinfo (fs/notify/fdinfo.c)."""
        fields = dict(field.split(b":", 1) for field in line.split() if b":" in field)
        self.dev = kdev_decode(int(fields[b"sdev"], 16))  # of the superblock
        self.ino = int(fields[b"ino"], 16)
        # File handle, type and bytes; the line ends with it, after a blank.
        kind = fields.get(b"fhandle-type", b"0")
        self.handle = (int(kind, 16), bytes.fromhex(fields.get(b"f_handle", b"").decode()))


def watches_of(pid: int | str) -> Iterator[Watch]:
    """Yield the watches that a process has, in the order of its fds.

    Args:
        pid: its process id, or "self".
    """
    for fd in sorted(below(pid, "fd"), key=int):
        if _may_watch(f"/proc/{pid}/fd/{fd}"):
            yield from _watches_in(pid, fd)


def _may_watch(path: str) -> bool:
    """Tell an inotify or fanotify fd: anon_inode:inotify, anon_inode:[fanotify]."""
    try:
        return os.readlink(path).startswith("anon_inode:")
    except OSError as error:
        if is_end(error):
            return False
        raise


def _watches_in(pid: int | str, fd: str) -> Iterator[Watch]:
    for line in fdinfo(pid, fd):
        if line.startswith((b"inotify wd:", b"fanotify ino:")):
            yield Watch(line)


def watches_of_tasks(machine: Machine) -> Iterator[tuple[int, Watch]]:
    """Yield each watch of the dumped tasks, after the task that has it.

    Args:
        machine: what is around the dump.
    """
    for pid in machine.tasks:
        for watch in watches_of(pid):
            yield pid, watch


def all_watches() -> Iterator[Watch]:
    """Yield the watches of all processes but this one."""
    found = Walker().look_for(walk.anonymous_inodes())
    for seen in found.on():
        if seen.what == walk.FD and not seen.error and not seen.gone:
            yield from _watches_in(seen.tid, str(seen.number))
    found.close()
