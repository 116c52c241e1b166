# SPDX-License-Identifier: GPL-2.0-only
"""New files of every kind, made under a name that is free, and opened again.

The content of a regular file is written before there is a name, where the filesystem can
(O_TMPFILE), so what is interrupted leaves nothing behind.
"""

from __future__ import annotations

import errno
import os
import stat

from criu_detached import kernel
from criu_detached.errors import DetachedError, quote
from criu_detached.kernel.fds import Fd
from criu_detached.restore.temporary import first_free

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.images.records import File, Inode
    from criu_detached.restore.context import ProcessFds

_NO_TMPFILE = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOSYS}
_O_PATH_FD = kernel.AT_EMPTY_PATH | kernel.OPEN_TREE_CLOEXEC


class NewFiles:
    """Makes files; each method raises OSError when the kernel refuses."""

    def __init__(self, fds: ProcessFds) -> None:
        """Make nothing yet.

        Args:
            fds: those of this process.
        """
        self._fds = fds
        self._open: list[Fd] = []  # see _make_named

    def close(self) -> None:
        """Let go of files that were kept open for their inode numbers to last."""
        while self._open:
            self._open.pop().close()

    def make(self, file: File, inode: Inode, parent: int, name: bytes) -> tuple[bytes, int]:
        """Make a file, with its content.

        Args:
            file: its record.
            inode: likewise.
            parent: the directory.
            name: the one that it had.

        Returns:
            The name that it has, and its inode number where that is known (else 0).
        """
        if stat.S_ISREG(file.mode):
            return self._make_regular(inode, parent, name)
        return first_free(name, lambda free: _make_special(file, inode, parent, free)), 0

    def make_unnamed(self, inode: Inode, parent: int) -> Fd:
        """Make a file as O_TMPFILE does, so that linkat(2) can still give it a name.

        Args:
            inode: its record.
            parent: the directory.

        Returns:
            An O_PATH fd.
        """
        with _open_new(b".", os.O_TMPFILE, parent) as fd:
            self._fds.write_content(fd, inode)
            return kernel.open_tree(fd, b"", _O_PATH_FD)

    def link(self, fd: int, parent: int, name: bytes) -> tuple[bytes, int]:
        """Give an open file a name, by linkat(2); through /proc: AT_EMPTY_PATH takes a capability.

        Args:
            fd: the file.
            parent: the directory.
            name: the one that it had.

        Returns:
            The name that it has, and its inode number.
        """
        path, proc = b"self/fd/%d" % fd, self._fds.proc
        free = first_free(
            name, lambda free: os.link(path, free, src_dir_fd=proc, dst_dir_fd=parent)
        )
        return free, kernel.fstat(fd).ino

    def _make_regular(self, inode: Inode, parent: int, name: bytes) -> tuple[bytes, int]:
        try:
            made = _open_new(b".", os.O_TMPFILE, parent)
        except OSError as error:
            if error.errno not in _NO_TMPFILE:
                raise
            return self._make_named(inode, parent, name)
        with made as fd:
            self._fds.write_content(fd, inode)
            return self.link(fd, parent, name)

    def _make_named(self, inode: Inode, parent: int, name: bytes) -> tuple[bytes, int]:
        """Make a regular file where none can be made without a name; it stays open."""

        def create(free: bytes) -> None:
            self._open.append(_open_new(free, os.O_CREAT | os.O_EXCL, parent))

        free = first_free(name, create)
        try:
            self._fds.write_content(self._open[-1], inode)
            return free, kernel.fstat(self._open[-1]).ino
        except BaseException:
            os.unlink(free, dir_fd=parent)
            raise


def open_directory(parent: int, name: bytes) -> tuple[Fd, Fd]:
    """Open a directory that was made a moment ago.

    Args:
        parent: the directory that it is in.
        name: of it.

    Returns:
        An fd to work in it, and an O_PATH one.

    Raises:
        OSError: the kernel refuses it.
    """
    opened = Fd.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, parent)
    try:
        return opened, kernel.open_tree(opened, b"", _O_PATH_FD)
    except OSError:
        opened.close()
        raise


def open_made(file: File, parent: int, name: bytes, ino: int) -> Fd:
    """Open a file that was made a moment ago.

    Who may write to the directory can put another file in its place meanwhile, and that would be
    given the owner and the permissions.

    Args:
        file: its record.
        parent: the directory.
        name: the name that it was made under.
        ino: its inode number; 0: it is not known.

    Returns:
        An O_PATH fd.

    Raises:
        DetachedError: another file is there.
        OSError: the kernel refuses it.
    """
    fd = Fd.open(name, kernel.O_PATH | kernel.O_NOFOLLOW, parent)
    found = kernel.fstat(fd)
    kind = stat.S_IFMT(file.mode)
    device = kind in (stat.S_IFCHR, stat.S_IFBLK)
    new = found.ino == ino if ino else found.nlink == 1
    if new and stat.S_IFMT(found.mode) == kind and (not device or found.rdev == file.rdev):
        return fd
    fd.close()
    raise DetachedError(f"{quote(file.path)} was replaced while it was made again")


def _open_new(name: bytes, flags: int, parent: int) -> Fd:
    """Make a regular file, open for reading and writing."""
    return Fd(os.open(name, flags | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=parent))


def _make_special(file: File, inode: Inode, parent: int, name: bytes) -> None:
    """Make what is no regular file."""
    kind = stat.S_IFMT(file.mode)
    if kind == stat.S_IFDIR:
        os.mkdir(name, 0o700, dir_fd=parent)
    elif kind == stat.S_IFLNK:
        os.symlink(inode.target, name, dir_fd=parent)
    else:
        os.mknod(name, kind | 0o600, file.rdev, dir_fd=parent)
