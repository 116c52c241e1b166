# SPDX-License-Identifier: GPL-2.0-only
"""From an open file whose name is gone to its record: in CRIU's words a ghost file."""

from __future__ import annotations

import os
import stat

from criu_detached import kernel, paths
from criu_detached.dump.inodes import inode_of
from criu_detached.dump.open_file import handle_of
from criu_detached.errors import DetachedError, quote
from criu_detached.filesystems.types import OVERLAY, is_silly_renamed
from criu_detached.images.records import Ghost
from criu_detached.settings import GHOST_LIMIT, WHERE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.dump.context import DumpContext
    from criu_detached.dump.describe.mount import DetachedMount
    from criu_detached.dump.open_file import OpenFile
    from criu_detached.images.records import File, Inode
    from criu_detached.kernel import FileStat

_BLOCK = 512  # bytes; the unit of st_blocks (stat(2))
_NO_ID = 0xFFFFFFFF  # userns_uid (criu/namespaces.c) of what has none


class GhostDescriber:
    """Describes the deleted files of one dump; their contents go into the data file."""

    def __init__(self, context: DumpContext) -> None:
        """Take what it needs.

        Args:
            context: of the dump.
        """
        self._context = context
        # Tasks make what is in their mount namespace with the privileges of their user namespace.
        self._restricted = context.criu.dumps_user_namespace()

    def describe(self, file: OpenFile, record: File, mount: DetachedMount) -> Ghost:
        """Describe a deleted file.

        Args:
            file: the file.
            record: its record, which gets its handle; the path is the one that it had.
            mount: its mount.

        Raises:
            DetachedError: it cannot be made again.
        """
        _check_lasting(file, mount)
        self._check_directory(record.path, mount)
        record.handle = file.handle
        ghost = Ghost(file=record, unnamed=int(_is_unnamed(record)))
        # Some filesystems keep the link count of a deleted directory; it has no other name.
        if file.stat.nlink and not file.is_directory:
            alias = _lasting_alias(file, mount)
            if alias is not None:
                ghost.alias = alias
                return ghost
        ghost.inode = self._describe_inode(file, mount)
        return ghost

    def _describe_inode(self, file: OpenFile, mount: DetachedMount) -> Inode:
        if stat.S_ISREG(file.stat.mode):
            self._check_limit(file.fd)
        inode = inode_of(file, self._context.contents)
        if mount.in_namespace:
            uid, gid = self._context.criu.userns_ids(file.stat.uid, file.stat.gid)
            inode.uid, inode.gid = uid, gid
            if self._restricted:
                _refuse_privileged(inode, file.stat)
        return inode

    def _check_directory(self, path: bytes, mount: DetachedMount) -> None:
        """Refuse what could not get a name where it had one, and lose it again."""
        directory = mount.nearest_directory(path)
        if directory is None:
            return  # its filesystem is recreated, or provided by the user
        found, where = directory
        if found.is_frozen:
            raise DetachedError(
                "it is deleted, and was in a directory that is immutable or append-only"
                f" ({quote(where)}): the restore has to give it a name there for a moment; use"
                " chattr -ia on that, or close the file"
            )
        if not self._restricted or not mount.in_namespace:
            return
        if _NO_ID in self._context.criu.userns_ids(found.uid, found.gid):
            raise DetachedError(
                "it is deleted, and would get its name again from the tasks' user namespace, which"
                f" has no rights over the directory that it was in ({quote(where)}): give that to"
                " an owner of the namespace, or close the file"
            )

    def _check_limit(self, fd: int) -> None:
        size, limit = os.fstat(fd).st_blocks * _BLOCK, self._context.settings.ghost_limit
        if size > limit:
            enough = -(-size >> 20)  # MiB
            raise DetachedError(
                f"it is deleted and has {size} bytes on disk, over the limit of {limit}: write"
                f' "{quote(GHOST_LIMIT)} {enough}M" {WHERE}'
            )


def _check_lasting(file: OpenFile, mount: DetachedMount) -> None:
    """Refuse what could get no name, or what a server would delete before a task has it again."""
    if mount.read_only:
        raise DetachedError(
            "it is deleted, and its filesystem is read-only: it could not be given a name"
            " again, which the restore needs; make the filesystem writable, or close the file"
        )
    if file.stat.is_frozen:
        raise DetachedError(
            "it is deleted, and immutable or append-only: it could not be given a name again,"
            " which the restore needs; use chattr -ia on it, or close it"
        )
    # A server is told of regular files alone that they are open, and of directories too late.
    server = mount.fs_type.server
    if server and not stat.S_ISREG(file.stat.mode):
        raise DetachedError(
            f"it is deleted, and no regular file: the server of its filesystem ({server}) keeps"
            " those alone while they have no name; close it"
        )


def _refuse_privileged(inode: Inode, found: FileStat) -> None:
    """What is recreated in a user namespace cannot have what takes privileges outside of it."""
    why = ""
    if stat.S_ISBLK(found.mode) or stat.S_ISCHR(found.mode):
        why = "it is a device"
    elif _NO_ID in (inode.uid, inode.gid):
        why = f"its owner {found.uid}:{found.gid} is not in that namespace"
    for xattr in inode.xattrs:
        if not xattr.name.startswith((b"user.", b"security.selinux")):
            why = f"it has the extended attribute {quote(xattr.name)}"
    if why:
        raise DetachedError(
            f"it is deleted, and would be made anew in the tasks' user namespace, but {why}:"
            " close it"
        )


def _is_unnamed(record: File) -> bool:
    """Tell what was made with O_TMPFILE by the name that the kernel gives it (d_mark_tmpfile)."""
    return stat.S_ISREG(record.mode) and paths.split(record.path)[1] == b"#%d" % record.ino


def _lasting_alias(file: OpenFile, mount: DetachedMount) -> bytes | None:
    """Another name of a file, or nothing where its handle will do; None: no name outlives it."""
    served = bool(mount.fs_type.server)
    renamed = set()
    for alias in mount.names_in_source(file):
        if served and not _may_be(alias, file, mount):
            continue
        if not served or not is_silly_renamed(alias):
            return alias
        renamed.add(alias)
        # Told anew by the server, now that it has been asked for that name.
        if kernel.fstat(file.fd).nlink <= len(renamed):
            return None
    if mount.fs_type is OVERLAY and file.handle is None:
        raise DetachedError(
            "its name is deleted, and it has one left that is not to be found in the bind source"
            " (a file of a lower layer keeps its name there, where no path of the overlay leads):"
            " close it"
        )
    if served or file.handle is None:
        raise DetachedError(
            "its name is deleted, and the other one that it still has is not to be found"
            " in the bind source: give it a name there, or close the file"
        )
    return b""


def _may_be(path: bytes, file: OpenFile, mount: DetachedMount) -> bool:
    """Tell whether a name that shows a deleted file's number may be one of that file's.

    Servers may give one number to several files. To some a node is a name (libfuse), so that hard
    links have other handles.
    """
    try:
        there = mount.open_in_source(path)
    except OSError:
        return False
    with there:
        if file.handle is not None and handle_of(there) == file.handle:
            return True
        one, other = kernel.fstat(file.fd), kernel.fstat(there)
    alike = (one.mode, one.uid, one.gid, one.size) == (other.mode, other.uid, other.gid, other.size)
    return one.nlink > 1 and alike
