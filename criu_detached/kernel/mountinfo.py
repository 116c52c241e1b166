# SPDX-License-Identifier: GPL-2.0-only
"""Mounts as /proc/PID/mountinfo shows them (proc_pid_mountinfo(5))."""

from __future__ import annotations

import errno
import os

from criu_detached.kernel.devnum import parse_dev
from criu_detached.kernel.fds import Fd
from criu_detached.kernel.files import glance

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


# The process ended, is a kernel thread, or may not be looked at.
_NOT_SHOWN = {errno.ENOENT, errno.ESRCH, errno.EINVAL, errno.EACCES, errno.EPERM}


class MountInfo:
    """One attached mount."""

    __slots__ = ("dev", "fs_type", "mnt_id", "mountpoint", "options", "root", "super_options")

    def __init__(self, line: bytes) -> None:
        """Take a line of mountinfo apart; raises ValueError or IndexError when it is none."""
        fields = line.split(b" ")
        dash = fields.index(b"-", 6)
        self.mnt_id = int(fields[0])
        self.dev = parse_dev(fields[2])
        self.root = unescape(fields[3])
        self.mountpoint = unescape(fields[4])
        self.options = fields[5].split(b",")
        # The subtype of FUSE filesystems ("fuse.sshfs") is no part of the type.
        self.fs_type = fields[dash + 1].split(b".")[0]
        self.super_options = fields[dash + 3].split(b",")


def unescape(field: bytes) -> bytes:
    r"""Undo the kernel's escapes of blanks, tabs, newlines and backslashes (``\040``)."""
    if b"\\" not in field:
        return field
    head, *parts = field.split(b"\\")
    return head + b"".join(bytes((int(part[:3], 8),)) + part[3:] for part in parts)


def read_mountinfo(pid: int | str = "self", proc: int | None = None) -> list[MountInfo]:
    """Return the mounts that a process sees.

    Args:
        pid: its process id, or "self".
        proc: fd of a procfs; None is the one at /proc.

    Raises:
        OSError: the process is gone.
    """
    name = f"{pid}/mountinfo" if proc is not None else f"/proc/{pid}/mountinfo"
    data = b""
    with Fd.open(name, os.O_RDONLY, proc) as fd:
        while piece := os.read(fd, 1 << 16):
            data += piece
    # Not splitlines: a name may hold a carriage return, which the kernel does not escape.
    return [MountInfo(line) for line in data.split(b"\n") if line]


def namespaces(ids: Iterable[int] | None = None) -> Iterator[tuple[int, list[int]]]:
    """Yield each mount namespace that has a process: its inode, and those processes' ids.

    The namespace of this process comes first.

    Args:
        ids: of the processes and threads that are asked; None: all processes.
    """
    found: dict[int, list[int]] = {os.stat("/proc/self/ns/mnt").st_ino: []}
    for pid in ids or [int(name) for name in os.listdir("/proc") if name.isdigit()]:
        try:
            inode = os.stat(f"/proc/{pid}/ns/mnt").st_ino
        except OSError as error:
            if error.errno not in _NOT_SHOWN:
                raise
            continue
        found.setdefault(inode, []).append(pid)
    yield from found.items()


def info_of(mnt_id: int) -> MountInfo:
    """Return what the mount table of this namespace says of a mount that is attached here.

    Args:
        mnt_id: the mount.
    """
    (info,) = (info for info in read_mountinfo() if info.mnt_id == mnt_id)
    return info


def attached_ids() -> set[int]:
    """Return the ids of the mounts that some process sees."""
    views = (mounts_of_namespace(pids or [os.getpid()]) for _, pids in namespaces())
    return {mount.mnt_id for mounts in views for _, mount in mounts}


def mounts_of_namespace(pids: list[int]) -> list[tuple[int, MountInfo]]:
    """Return the mounts of one namespace, each with a process that sees it.

    A process that was chrooted sees a part only, and paths from its own root: several
    are asked, and the one that sees most comes first.
    """
    seen: dict[int, tuple[int, MountInfo]] = {}
    views = []
    roots = set()
    for pid in pids:
        try:
            # Its filesystem may not answer, and that of another user tells no inode.
            root = glance(f"/proc/{pid}/root")
            if (root.mnt_id, root.ino) in roots:
                continue
            if root.ino:
                roots.add((root.mnt_id, root.ino))
            views.append((pid, read_mountinfo(pid)))
        except OSError as error:
            if error.errno not in _NOT_SHOWN:
                raise
    for pid, mounts in sorted(views, key=lambda view: -len(view[1])):
        for mount in mounts:
            seen.setdefault(mount.mnt_id, (pid, mount))
    return list(seen.values())
