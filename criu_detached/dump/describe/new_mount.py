# SPDX-License-Identifier: GPL-2.0-only
"""A mount that is not described yet, and what its record has wherever it comes from."""

from __future__ import annotations

import os
import stat

from criu_detached import kernel, paths
from criu_detached.images.records import Mount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.dump.open_file import OpenFile
    from criu_detached.kernel.statmount import StatMount
    from criu_detached.paths import Name

# statfs f_flags (ST_* of linux/statfs.h) that are mount attributes
_FROM_STATFS = {
    os.ST_RDONLY: kernel.MOUNT_ATTR_RDONLY,
    os.ST_NOSUID: kernel.MOUNT_ATTR_NOSUID,
    os.ST_NODEV: kernel.MOUNT_ATTR_NODEV,
    os.ST_NOEXEC: kernel.MOUNT_ATTR_NOEXEC,
    os.ST_NOATIME: kernel.MOUNT_ATTR_NOATIME,
    os.ST_NODIRATIME: kernel.MOUNT_ATTR_NODIRATIME,
    0x2000: kernel.MOUNT_ATTR_NOSYMFOLLOW,  # ST_NOSYMFOLLOW, Linux 5.10
}


class Position:
    """How a mount lies among others: a detached one is alone."""

    anonymous = False
    parent = 0  # the mount that it is on; 0: none
    place = b""  # and where, beneath the root of that

    def rooted(self, file: OpenFile) -> OpenFile:
        """Return a file of the mount with its path from the mount's root.

        Args:
            file: with its link as the kernel shows it.

        Raises:
            DetachedError: the mount does not lead to it.
        """
        return file

    def note(self, file: OpenFile) -> None:
        """Take note of a file of the mount that is recorded.

        Args:
            file: the file.

        Raises:
            DetachedError: it shows that others are with the mount, which are not recorded.
        """


_ALONE = Position()


class NewMount:
    """A mount that was met: a file on it, and what the kernel tells of it."""

    def __init__(
        self, file: OpenFile, statmount: StatMount | None, position: Position = _ALONE
    ) -> None:
        """Take what is known.

        Args:
            file: on the mount, with its path from the mount's root.
            statmount: what statmount(2) says of the mount, where the kernel can.
            position: how it lies among others.
        """
        self.file = file
        self.mnt_id = file.stat.mnt_id
        self.statmount = statmount
        self.position = position

    @property
    def dev(self) -> int:
        """Device of its superblock; where the kernel does not tell that, of the file."""
        return self.statmount.sb_dev if self.statmount else self.file.stat.dev

    @property
    def id_maps(self) -> tuple[list[bytes], list[bytes]]:
        """Uid and gid map, where the kernel tells them."""
        return (self.statmount.uid_map, self.statmount.gid_map) if self.statmount else ([], [])

    def attributes(self) -> int:
        """Attributes of the mount, MOUNT_ATTR_*.

        Before Linux 7.0 from statfs(2), which mixes in the superblock's read-only flag: on a
        read-only superblock a read-only mount looks like a writable one; it is
        restored read-only, which differs only if the filesystem is made writable later.
        """
        if self.statmount:
            return self.statmount.mnt_attr & ~kernel.MOUNT_ATTR_IDMAP
        flags = self.file.statfs.flags
        attr = 0
        for flag, attribute in _FROM_STATFS.items():
            if flags & flag:
                attr |= attribute
        if not flags & (os.ST_NOATIME | os.ST_RELATIME):
            attr |= kernel.MOUNT_ATTR_STRICTATIME
        return attr

    def record(self, name: Name, origin: int) -> Mount:
        """Begin the record of the mount.

        Args:
            name: of the file, from the mount's root.
            origin: how the mount will come back, BIND_SOURCE and so on.

        Returns:
            What it has wherever it comes from; the rest is its kind's to add.
        """
        known, position = self.statmount, self.position
        is_root = name.path == paths.ROOT
        private = position.anonymous and known and known.mnt_propagation == kernel.MS_PRIVATE
        uid_map, gid_map = self.id_maps
        return Mount(
            mnt_id=self.mnt_id,
            origin=origin,
            root_type=stat.S_IFMT(self.file.stat.mode) if is_root else stat.S_IFDIR,
            attr=self.attributes(),
            uid_map=uid_map,
            gid_map=gid_map,
            anonymous=int(position.anonymous),
            private=int(bool(private)),
            parent=position.parent,
            place=position.place,
        )
