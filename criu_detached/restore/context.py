# SPDX-License-Identifier: GPL-2.0-only
"""What one restore shares, and what each process that realises a mount has open for it."""

from __future__ import annotations

import os

from criu_detached.filesystems.superblock import boot_id
from criu_detached.restore.plan import Plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.criu.criu import Criu
    from criu_detached.criu.host import Host
    from criu_detached.images.datafile import DataFileReader
    from criu_detached.images.record_reader import Records
    from criu_detached.images.records import Inode

# Name of the image of a user namespace, up to its number (imgset_template, criu/image-desc.c)
_USERNS_IMAGE = "userns-"


class RestoreContext:
    """What one restore shares. CRIU's process makes it; each task has a copy since its fork."""

    __slots__ = (
        "criu",
        "fast_path",
        "in_userns",
        "plan",
        "records",
        "same_boot",
        "shared",
        "store",
    )

    def __init__(self, host: Host, records: Records) -> None:
        """Find out what all of the restore has to know.

        Args:
            host: what runs this process.
            records: all of the dump; mounts are checked, and user-provided ones replaced.

        Raises:
            DetachedError: a tree cannot be put together in one place.
        """
        self.criu = host.criu
        self.store = host.fds
        self.shared = host.shared
        self.fast_path = host.fast_path
        self.records = records
        self.plan = Plan(records)
        # The dump was made on this very boot: device numbers mean the same.
        self.same_boot = records.header.boot_id == boot_id()
        self.in_userns = has_userns(host.criu)


class ProcessFds:
    """What a process that realises a mount has open for it: CRIU's own process, or a task."""

    __slots__ = ("contents", "proc", "userns")

    def __init__(self, proc: int, contents: DataFileReader | None = None, userns: int = -1) -> None:
        """Gather it; the fds stay the caller's.

        Args:
            proc: fd of a procfs that shows this process its fds; -1 where nothing is deleted.
            contents: of the data file; None where no file has any.
            userns: fd of a user namespace with the mount's id-maps; -1 where it needs none.
        """
        self.proc = proc
        self.contents = contents
        self.userns = userns

    def write_content(self, fd: int, inode: Inode) -> None:
        """Give a new regular file its size and what is in it.

        Args:
            fd: the file, open for writing, empty.
            inode: its record, checked.

        Raises:
            DetachedError: the data file is damaged.
            OSError: the file cannot be written.
        """
        if inode.data_size:
            assert self.contents is not None  # checks.check_inode
            self.contents.copy(inode.data_at, inode.data_size, fd, inode.size)
        elif inode.size:
            os.ftruncate(fd, inode.size)


def has_userns(criu: Criu) -> bool:
    """Tell whether the images have a user namespace; CRIU dumps one at most."""
    return any(name.startswith(_USERNS_IMAGE) for name in os.listdir(criu.image_dir()))
