# SPDX-License-Identifier: GPL-2.0-only
"""What new files are given besides a content: owner, permissions, attributes and times."""

from __future__ import annotations

import errno
import os
import stat

from criu_detached import kernel
from criu_detached.filesystems.idmap import unmap_id
from criu_detached.kernel.fds import Fd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from criu_detached.images.records import Ghost, Inode, Time, Xattr


class WorkingDirectory:
    """Another working directory, for the length of a ``with`` block.

    Extended attributes of a file that cannot be opened are set by its path alone. A path that
    starts from a procfs leads to it, whatever /proc this process has.
    """

    __slots__ = ("_before", "_directory")

    def __init__(self, directory: int) -> None:
        self._directory = directory

    def __enter__(self) -> None:
        self._before = Fd.open(b".", kernel.O_PATH)
        try:
            os.fchdir(self._directory)
        except OSError:
            self._before.close()
            raise

    def __exit__(self, *_: object) -> None:
        with self._before:
            os.fchdir(self._before)


def give_attributes(ghosts: Sequence[tuple[Ghost, int]], proc: int) -> None:
    """Give new files what their inodes had besides their contents.

    Args:
        ghosts: their records, each with an fd of the file, O_PATH or not.
        proc: fd of a procfs that shows this task its fds.

    Raises:
        OSError: the kernel refused it.
    """
    with WorkingDirectory(proc):
        for path, inode, mode in _new(ghosts):
            set_attributes(path, inode, mode)


def give_owners(
    ghosts: Sequence[tuple[Ghost, int]], proc: int, uid_map: list[bytes], gid_map: list[bytes]
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
    with WorkingDirectory(proc):
        for path, inode, _ in _new(ghosts):
            uid = unmap_id(inode.uid, uid_map, "a deleted file")
            os.chown(path, uid, unmap_id(inode.gid, gid_map, "a deleted file"))


def _new(ghosts: Sequence[tuple[Ghost, int]]) -> Iterator[tuple[bytes, Inode, int]]:
    """Yield a path from a procfs, the inode and the mode of each file that was made."""
    for ghost, fd in ghosts:
        if ghost.inode is not None and ghost.file is not None:
            yield b"self/fd/%d" % fd, ghost.inode, ghost.file.mode


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
