# SPDX-License-Identifier: GPL-2.0-only
"""Mounts that the user will supply at restore (the setting ``external``), at dump.

No attached mount shows their files here, so a file is known by its link alone.
"""

from __future__ import annotations

import stat

from criu_detached import paths
from criu_detached.dump.describe.mount import DetachedMount, mount_attributes_of
from criu_detached.dump.observe.classify import Kind
from criu_detached.errors import DetachedError, quote
from criu_detached.filesystems.superblock import superblock_of
from criu_detached.filesystems.types import name_for_messages
from criu_detached.images.records import SUPPLIED, BindSource, Mount
from criu_detached.kernel import FileStat, fstatfs
from criu_detached.paths import Name
from criu_detached.settings import EXTERNAL, IMAGES_FILE, SOURCE, WHERE


def advice(mnt_id: int) -> str:
    """Say how a mount that has no source can be dumped all the same."""
    return f'or supply it yourself at restore: for that, write "{quote(EXTERNAL)} {mnt_id}" {WHERE}'


def at_restore(mount: Mount) -> str:
    """Say of a mount's root that it is to be supplied, and how."""
    fs_type = mount.superblock.fs_type if mount.superblock else b""
    return (
        f"on {quote(fs_type)} is to be supplied at restore: write"
        f' "{quote(SOURCE)} {mount.mnt_id} PATH" to {IMAGES_FILE} in the image directory by then'
    )


class ExternalMount(DetachedMount):
    """A detached mount that the user will supply."""

    def __init__(self, fd: int, link: bytes, facts: FileStat, kind: Kind) -> None:
        """Describe it by a file on it.

        Args:
            fd: the file.
            link: its path from the mount's root, as its link shows it.
            facts: of the file.
            kind: what the classifier said.

        Raises:
            DetachedError: nothing that is supplied could stand for it.
        """
        name = self.name_of(fd, link, facts)
        known = kind.statmount
        is_root = name.path == paths.ROOT
        if (known and known.root_deleted) or (is_root and name.deleted):
            raise DetachedError("the root of its mount is deleted, so the mount can't be supplied")
        fs_type = known.fs_type if known else name_for_messages(fstatfs(fd).magic)
        record = Mount(
            mnt_id=facts.mnt_id,
            origin=SUPPLIED,
            root=known.mnt_root if known else b"",
            root_type=stat.S_IFMT(facts.mode) if is_root else stat.S_IFDIR,
            attr=mount_attributes_of(fd, kind),
            superblock=superblock_of(fd, fs_type),
            bind_source=BindSource(path=paths.ROOT),
            uid_map=known.uid_map if known else [],
            gid_map=known.gid_map if known else [],
        )
        super().__init__(record, -1, -1, False)

    def name_of(self, fd: int, link: bytes, facts: FileStat) -> Name:
        """Read a link that nothing can be compared with.

        Args:
            fd: the file.
            link: a file's path from the mount's root, as its link shows it.
            facts: of the file.

        Raises:
            DetachedError: it may mean two things, as that of a deleted file with another name.
        """
        names = paths.readings(link, facts)
        if len(names) > 1:
            raise DetachedError(
                "whether it is deleted or so named can't be told on a mount that is to be"
                " supplied: close it"
            )
        return names[0]
