# SPDX-License-Identifier: GPL-2.0-only
"""The inotify and fanotify watches of processes, as fdinfo shows them."""

from __future__ import annotations

from criu_detached.dump.observe.processes import below, dumped_tasks, fdinfo, process_ids
from criu_detached.kernel.devnum import kdev_decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


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
    for fd in sorted(below(pid, "fdinfo"), key=int):
        for line in fdinfo(pid, fd):
            if line.startswith((b"inotify wd:", b"fanotify ino:")):
                yield Watch(line)


def watches_of_tasks() -> Iterator[tuple[int, Watch]]:
    """Yield each watch of the dumped tasks, after the task that has it."""
    for pid in dumped_tasks():
        for watch in watches_of(pid):
            yield pid, watch


def all_watches() -> Iterator[Watch]:
    """Yield the watches of all processes but this one."""
    for pid in process_ids():
        yield from watches_of(pid)
