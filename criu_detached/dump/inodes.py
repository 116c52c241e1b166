# SPDX-License-Identifier: GPL-2.0-only
"""What it takes to recreate a file: owner, times, attributes and content, in a record."""

from __future__ import annotations

import errno
import os
import stat

from criu_detached.errors import DetachedError
from criu_detached.images.copying import has_data
from criu_detached.images.records import Inode, Time, Xattr
from criu_detached.kernel.fds import Fd, magic_link, reopen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.dump.open_file import OpenFile
    from criu_detached.images.datafile import DataFileWriter


def inode_of(file: OpenFile, contents: DataFileWriter, readable: bool = False) -> Inode:
    """Save what it takes to recreate a file.

    Args:
        file: the file.
        contents: where its content goes.
        readable: the file can be read through its very fd.

    Raises:
        DetachedError: it cannot be read, or not be saved.
    """
    found = os.fstat(file.fd)
    inode = Inode(
        uid=file.stat.uid,
        gid=file.stat.gid,
        atime=_time(found.st_atime_ns),
        mtime=_time(found.st_mtime_ns),
    )
    try:
        inode.xattrs = _xattrs(file.fd if readable else magic_link(file.fd))
        if stat.S_ISLNK(file.stat.mode):
            inode.target = os.readlink(b"", dir_fd=file.fd)
        elif stat.S_ISREG(file.stat.mode):
            inode.size = found.st_size
            if readable:
                _save_content(file.fd, inode, contents)
            elif inode.size:
                with _reopen(file.fd) as reading:
                    _save_content(reading, inode, contents)
    except OSError as error:
        raise DetachedError(f"its content or attributes can't be read: {error}") from error
    return inode


def _save_content(fd: int, inode: Inode, contents: DataFileWriter) -> None:
    if inode.size and has_data(fd, inode.size):
        inode.data_at, inode.data_size = contents.add(fd, inode.size)


def _reopen(fd: int) -> Fd:
    """Open a file for reading, without an effect on its access time where that is allowed.

    O_NONBLOCK: where a lease is in the way, not to wait for its end.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK
    try:
        return reopen(fd, flags | os.O_NOATIME)
    except PermissionError:
        return reopen(fd, flags)


def _time(nanoseconds: int) -> Time:
    sec, nsec = divmod(nanoseconds, 1_000_000_000)
    return Time(sec=sec % (1 << 64), nsec=nsec)


def _xattrs(file: int | bytes) -> list[Xattr]:
    """Extended attributes; a link of procfs serves for O_PATH fds and symlinks too."""
    try:
        names = os.listxattr(file)
        return [Xattr(name=os.fsencode(name), value=os.getxattr(file, name)) for name in names]
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return []
        raise
