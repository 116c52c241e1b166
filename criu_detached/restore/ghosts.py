# SPDX-License-Identifier: GPL-2.0-only
"""From the record of a deleted file, a ghost, to an fd of it, whose name is gone again.

A ghost gets its name for a moment, is opened, and loses the name; that fd is kept, and
every fd that the tasks had is opened through it. On the filesystem of a server it is no O_PATH
fd: of such the server knows nothing, and would delete the file for good with the name. Content is
written before there is a name, where the filesystem can (O_TMPFILE), so what is interrupted
leaves nothing behind.
"""

from __future__ import annotations

import errno
import os
import stat

from criu_detached import kernel, paths
from criu_detached.errors import DetachedError, quote
from criu_detached.filesystems.superblock import type_of
from criu_detached.images.records import File, Ghost, Inode
from criu_detached.kernel.fds import Fd
from criu_detached.restore.aliases import open_alias
from criu_detached.restore.temporary import TemporaryNames, first_free

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

    from criu_detached.restore.context import ProcessFds

_NO_TMPFILE = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOSYS}


class GhostBuilder:
    """Makes the ghosts of one mount, in a clone of the bind source and in the new mount.

    What is made for the moment, names and the directories to them, is gone with the end of
    the ``with`` block.
    """

    def __init__(self, source: Fd, fds: ProcessFds, keeps_inodes: bool) -> None:
        """Open nothing yet.

        Args:
            source: a writable clone of the bind source; it is closed with the builder.
            fds: those of this process.
            keeps_inodes: superblock and root are the dumped ones, so inodes are the same.
        """
        self._source = source
        self._fds = fds
        self._keeps_inodes = keeps_inodes
        self._names = TemporaryNames(fds.proc)
        self._made: list[Fd] = []  # files that are open for now, see _make_named

    def __enter__(self) -> Self:
        """Return the builder."""
        return self

    def __exit__(self, *_: object) -> None:
        """Take every name away that is left; raises OSError when one cannot be."""
        try:
            self._close_made()
            self._names.close()
        finally:
            self._source.close()

    def make_root(self, path: bytes, mode: int, ghost: Ghost | None) -> bytes:
        """Give the deleted root of a mount a name.

        Args:
            path: the one that it had, beneath the bind source's root.
            mode: its type.
            ghost: its record; None: the tasks held only what was beneath it.

        Returns:
            The path that it has now, until the end of the ``with`` block.

        Raises:
            DetachedError: its record does not say what to make.
            OSError: the kernel refused it.
        """
        if ghost is None:
            ghost = Ghost(file=File(mode=mode, path=path), inode=Inode())
        directory, name = paths.split(path)
        parent, directory = self._names.open_parent(self._source, directory)
        name, _ = self._give_name(ghost, parent, name, parent)
        assert ghost.file is not None  # record_reader
        self._names.add(parent, name, is_directory=stat.S_ISDIR(ghost.file.mode))
        return paths.join(directory, name)

    def make(self, ghost: Ghost, tree: int, root: bytes) -> Fd:
        """Make a ghost; those of directories first, the nearer ones before what is in them.

        Args:
            ghost: its record.
            tree: the new mount, writable for now.
            root: path of its root beneath the bind source's root.

        Returns:
            An fd of it, the caller's; an O_PATH one, unless a server has to know of it.

        Raises:
            DetachedError: its record does not say what to make, or another file is there.
            OSError: the kernel refused it.
        """
        file = ghost.file
        assert file is not None  # record_reader
        if file.path == paths.ROOT:
            return self._known_to_server(paths.open_at(tree, paths.ROOT))
        directory, name = paths.split(file.path)
        parent, directory = self._names.open_parent(tree, directory)
        if ghost.unnamed and ghost.inode:
            return self._make_unnamed(ghost.inode, parent)
        beside = parent
        if not ghost.inode:  # a link stays on one mount, and the other name is on this one
            beside, _ = self._names.open_parent(self._source, paths.join(root, directory))
        name, ino = self._give_name(ghost, parent, name, beside)
        if stat.S_ISDIR(file.mode):
            self._names.add(parent, name, is_directory=True)
            opened, kept = _open_directory(parent, name)
            # What was in a deleted directory is made in it.
            self._names.add_parent(tree, file.path, opened, paths.join(directory, name))
            return kept
        try:
            return self._known_to_server(_open_made(file, parent, name, ino))
        finally:
            os.unlink(name, dir_fd=parent)
            self._close_made()

    def _known_to_server(self, fd: Fd) -> Fd:
        """Return an fd for which a server keeps the file when its name goes.

        Libfuse does so for open files (hide_node, lib/fuse.c).

        Args:
            fd: an O_PATH fd, which is closed if another one is returned.
        """
        try:
            served = stat.S_ISREG(kernel.fstat(fd).mode) and type_of(fd).server
            opened = Fd.open(b"self/fd/%d" % fd, os.O_RDONLY, self._fds.proc) if served else fd
        except OSError:
            fd.close()
            raise
        if opened is not fd:
            fd.close()
        return opened

    def _give_name(self, ghost: Ghost, parent: int, name: bytes, beside: int) -> tuple[bytes, int]:
        """Let a ghost have a name in a directory, its own if that is free.

        Args:
            ghost: what is to have it.
            parent: the directory.
            name: the one that it had.
            beside: the same directory on the clone of the bind source.

        Returns:
            The name that it has, and its inode number where that is known (else 0).
        """
        file, inode = ghost.file, ghost.inode
        assert file is not None  # record_reader
        self._names.note_times(parent)
        if inode is None:
            with open_alias(ghost, self._source, self._fds.proc, self._keeps_inodes) as other:
                return self._link(other, beside, name)
        if stat.S_ISREG(file.mode):
            return self._make_regular(inode, parent, name)
        return first_free(name, lambda free: _make_special(file, inode, parent, free)), 0

    def _make_unnamed(self, inode: Inode, parent: int) -> Fd:
        """Make a file as O_TMPFILE does, so that linkat(2) can still give it a name."""
        with _open_new(b".", os.O_TMPFILE, parent) as fd:
            self._fds.write_content(fd, inode)
            return kernel.open_tree(fd, b"", kernel.AT_EMPTY_PATH | kernel.OPEN_TREE_CLOEXEC)

    def _make_regular(self, inode: Inode, parent: int, name: bytes) -> tuple[bytes, int]:
        try:
            made = _open_new(b".", os.O_TMPFILE, parent)
        except OSError as error:
            if error.errno not in _NO_TMPFILE:
                raise
            return self._make_named(inode, parent, name)
        with made as fd:
            self._fds.write_content(fd, inode)
            return self._link(fd, parent, name)

    def _make_named(self, inode: Inode, parent: int, name: bytes) -> tuple[bytes, int]:
        """Make a regular file where none can be made without a name.

        It stays open until its name is gone, for its inode number to last.
        """

        def create(free: bytes) -> None:
            self._made.append(_open_new(free, os.O_CREAT | os.O_EXCL, parent))

        free = first_free(name, create)
        try:
            self._fds.write_content(self._made[-1], inode)
            return free, kernel.fstat(self._made[-1]).ino
        except BaseException:
            os.unlink(free, dir_fd=parent)
            raise

    def _close_made(self) -> None:
        while self._made:
            self._made.pop().close()

    def _link(self, fd: int, parent: int, name: bytes) -> tuple[bytes, int]:
        """Call linkat(2) for an open file, through /proc: AT_EMPTY_PATH takes a capability."""
        path, proc = b"self/fd/%d" % fd, self._fds.proc
        free = first_free(
            name, lambda free: os.link(path, free, src_dir_fd=proc, dst_dir_fd=parent)
        )
        return free, kernel.fstat(fd).ino


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


def _open_directory(parent: int, name: bytes) -> tuple[Fd, Fd]:
    """Open a directory that was just made; returns an fd to work with, and an O_PATH one."""
    opened = Fd.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, parent)
    try:
        flags = kernel.AT_EMPTY_PATH | kernel.OPEN_TREE_CLOEXEC
        return opened, kernel.open_tree(opened, b"", flags)
    except OSError:
        opened.close()
        raise


def _open_made(file: File, parent: int, name: bytes, ino: int) -> Fd:
    """Open a file that was made a moment ago; returns an O_PATH fd.

    Who may write to the directory can put another file in its place meanwhile, and that would be
    given the owner and the permissions.
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


def depth(ghost: Ghost) -> tuple[int, bytes]:
    """Return the order in which ghosts are made: what is in a directory comes after it."""
    assert ghost.file is not None  # record_reader
    path = ghost.file.path
    return (-1 if path == paths.ROOT else path.count(b"/"), path)
