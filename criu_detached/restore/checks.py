# SPDX-License-Identifier: GPL-2.0-only
"""Records that no dump writes are refused, before anything is made of them."""

from __future__ import annotations

import stat

from criu_detached import paths
from criu_detached.errors import DetachedError, quote
from criu_detached.filesystems import attributes
from criu_detached.images.records import BIND_SOURCE, RECREATED, REMOUNT, SUPPLIED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.images.datafile import DataFileReader
    from criu_detached.images.record_reader import Records
    from criu_detached.images.records import Ghost, Inode, Mount

_ORIGINS = (BIND_SOURCE, REMOUNT, RECREATED, SUPPLIED)
_KINDS = {stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK}


def check_mount(mount: Mount) -> None:
    """Refuse the record of a mount that no dump writes.

    Raises:
        DetachedError: it is of an unknown origin, or with flags that are no mount attributes.
    """
    source = mount.bind_source
    if mount.origin not in _ORIGINS or source is None or mount.superblock is None:
        raise DetachedError(
            f"mount {mount.mnt_id} has the unknown origin {mount.origin}:"
            " restore with the version of criu-detached that dumped it"
        )
    if mount.attr & ~attributes.KNOWN:
        raise DetachedError(f"mount {mount.mnt_id} has unknown attributes {mount.attr:#x}")
    for name in (source.mountpoint, source.path, mount.place):
        if b"\0" in name or b".." in name.split(b"/"):
            raise DetachedError(f"mount {mount.mnt_id} has the invalid path {quote(name)}")
    if mount.root_deleted and source.path == paths.ROOT:
        raise DetachedError(f"mount {mount.mnt_id} has a deleted root, and is all of its source")


def check_filesystems(records: Records) -> None:
    """Refuse records that no dump writes.

    Raises:
        DetachedError: a filesystem has no type, or is not there.
    """
    for number, filesystem in records.filesystems.items():
        if filesystem.superblock is None:
            raise DetachedError(f"filesystem {number} has no type: are the images damaged?")
    for mount in records.mounts.values():
        if mount.origin in (REMOUNT, RECREATED) and mount.filesystem not in records.filesystems:
            raise DetachedError(
                f"mount {mount.mnt_id} is of a filesystem that is not there: are the images"
                " damaged?"
            )


def check_ghost(ghost: Ghost, reader: DataFileReader | None) -> None:
    """Refuse the record of a deleted file that no dump writes.

    Args:
        ghost: the record.
        reader: of the data file; None: there is none.

    Raises:
        DetachedError: a path leaves its mount, or the content is not there.
    """
    file, inode = ghost.file, ghost.inode
    assert file is not None  # record_reader
    for path in (file.path, ghost.alias or paths.ROOT):
        if path != paths.ROOT and paths.is_invalid(path):
            raise DetachedError(f"a deleted file has the invalid path {quote(path)}")
    if stat.S_IFMT(file.mode) not in _KINDS:
        raise DetachedError(f"{quote(file.path)} has the invalid mode {file.mode:#o}")
    if inode is None:
        if not ghost.alias and file.handle is None:
            raise DetachedError(f"nothing tells where {quote(file.path)} is to be found")
        return
    check_inode(file.path, file.mode, inode, reader)


def check_inode(path: bytes, mode: int, inode: Inode, reader: DataFileReader | None) -> None:
    """Refuse the record of an inode that no dump writes.

    Args:
        path: of the file, for messages.
        mode: of the file.
        inode: the record.
        reader: of the data file; None: there is none.

    Raises:
        DetachedError: it is bad, or the content is not there.
    """
    if b"\0" in inode.target or stat.S_ISLNK(mode) == (not inode.target):
        raise DetachedError(f"{quote(path)} has an invalid target")
    for xattr in inode.xattrs:
        if not xattr.name or b"\0" in xattr.name:
            raise DetachedError(f"{quote(path)} has an invalid extended attribute")
    if inode.data_size:
        if reader is None or not stat.S_ISREG(mode):
            raise DetachedError(f"{quote(path)} has a content, which is not there")
        reader.check(inode.data_at, inode.data_size, inode.size)
