# SPDX-License-Identifier: GPL-2.0-only
"""What new files are given besides a content: owner, permissions, attributes and times."""

from __future__ import annotations

import errno
import os
import stat

from criu_detached import kernel
from criu_detached.filesystems.idmap import unmap_id
from criu_detached.images.records import Ghost, Inode, Time, Xattr

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def give_attributes(ghosts: list[tuple[Ghost, int]], proc: int) -> None:
    """Give new files what their inodes had besides their contents.

    Args:
        ghosts: their records, each with an fd of the file, O_PATH or not.
        proc: fd of a procfs that shows this task its fds.

    Raises:
        OSError: the kernel refused it.
    """
    _for_each(ghosts, proc, set_attributes)


def give_owners(
    ghosts: list[tuple[Ghost, int]], proc: int, uid_map: list[bytes], gid_map: list[bytes]
) -> None:
    """Give new files the owners that an id-map will turn into those of their inodes.

    Args:
        ghosts: as for give_attributes.
        proc: likewise.
        uid_map: of the mount, checked; it does not have it yet.
        gid_map: likewise.

    Raises:
        DetachedError: an owner is not in the id-map.
        OSError: the kernel refused it.
    """

    def give(path: bytes, inode: Inode, _: int) -> None:
        uid = unmap_id(inode.uid, uid_map, "a deleted file")
        os.chown(path, uid, unmap_id(inode.gid, gid_map, "a deleted file"))

    _for_each(ghosts, proc, give)


def _for_each(
    ghosts: list[tuple[Ghost, int]], proc: int, give: Callable[[bytes, Inode, int], None]
) -> None:
    """Call a function for each file that was made anew, with a path that leads to it."""
    # Extended attributes are set by path alone, where a file cannot be opened.
    here = os.open(b".", kernel.O_PATH)
    try:
        os.fchdir(proc)
        for ghost, fd in ghosts:
            if ghost.inode is not None and ghost.file is not None:
                give(b"self/fd/%d" % fd, ghost.inode, ghost.file.mode)
    finally:
        os.fchdir(here)
        os.close(here)


def set_attributes(path: bytes | int, inode: Inode, mode: int) -> None:
    """Give a new file what its inode had; raises OSError.

    Args:
        path: a link of procfs that leads to it, or an fd that is no O_PATH one.
        inode: its record.
        mode: type and permissions.
    """
    os.chown(path, inode.uid, inode.gid)
    if not stat.S_ISLNK(mode):
        os.chmod(path, stat.S_IMODE(mode))
    _give_xattrs(path, inode.xattrs)
    os.utime(path, ns=(_nanoseconds(inode.atime), _nanoseconds(inode.mtime)))


def _give_xattrs(path: bytes | int, wanted: list[Xattr]) -> None:
    try:
        found = {os.fsencode(name): os.getxattr(path, name) for name in os.listxattr(path)}
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        found = {}
    for xattr in wanted:
        if found.pop(xattr.name, None) != xattr.value:
            os.setxattr(path, xattr.name, xattr.value)
    for name in found:  # inherited from the directory, as default ACLs are
        if not name.startswith(b"security."):
            os.removexattr(path, name)


def _nanoseconds(time: Time | None) -> int:
    if time is None:
        return 0
    sec = time.sec - (1 << 64) if time.sec >> 63 else time.sec
    return sec * 1_000_000_000 + time.nsec
