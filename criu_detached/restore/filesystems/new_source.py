# SPDX-License-Identifier: GPL-2.0-only
"""The root of a filesystem that was made or mounted just now, as the source of its mounts."""

from __future__ import annotations

import os

from criu_detached.filesystems.superblock import superblock_of
from criu_detached.filesystems.types import VOLATILE_INODES, by_magic
from criu_detached.images.records import RECREATED
from criu_detached.kernel.fds import Fd
from criu_detached.restore.source import Source

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.images.records import Mount


class NewFilesystem:
    """A filesystem that is there again."""

    __slots__ = ("same_inodes", "top")

    def __init__(self, top: Fd, same_inodes: bool | None) -> None:
        """Take it.

        Args:
            top: its root, which its mounts are cloned from.
            same_inodes: whether a new superblock has the inode numbers of the dump;
                None: the superblock is the dumped one.
        """
        self.top = top
        self.same_inodes = same_inodes


class NewFilesystemSource(Source):
    """The source of a mount: the root of a filesystem that was made or mounted just now."""

    def __init__(self, mount: Mount, filesystem: NewFilesystem) -> None:
        super().__init__(mount, filesystem.top, same_boot=True)
        self._filesystem = filesystem

    def open_top(self) -> Fd:
        """Open the root of the filesystem."""
        return Fd(os.dup(self.base))

    def check_superblock(self, fd: int) -> bool:
        """Return what is known of a new superblock; refuse another filesystem than the dumped one.

        Args:
            fd: something on it.

        Raises:
            DetachedError: it is of another type.
        """
        if self.mount.origin == RECREATED:
            return False
        if self._filesystem.same_inodes is not None:
            return self._filesystem.same_inodes
        assert self.mount.superblock is not None  # check_mount
        found = superblock_of(fd, self.mount.superblock.fs_type)
        self._refuse_type(self.mount.superblock, found)
        return not by_magic(found.magic).has(VOLATILE_INODES)

    def is_same_root(self, root: int) -> bool:
        """Return True: nobody but the restore has made one."""
        return True
