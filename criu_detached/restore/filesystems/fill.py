# SPDX-License-Identifier: GPL-2.0-only
"""The files of a filesystem in memory, which is empty at first.

Nobody else sees it while it is filled, but its records may be hostile: no path of a node
is followed through a symlink.
"""

from __future__ import annotations

import os
import stat

from criu_detached import kernel, paths
from criu_detached.errors import DetachedError, quote
from criu_detached.kernel.fds import Fd
from criu_detached.restore.checks import check_inode
from criu_detached.restore.inodes import WorkingDirectory, set_attributes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

    from criu_detached.images.datafile import DataFileReader
    from criu_detached.images.records import Inode, Node
    from criu_detached.restore.context import ProcessFds

MAX_OPEN = 64  # directories

_KINDS = {
    stat.S_IFREG,
    stat.S_IFDIR,
    stat.S_IFLNK,
    stat.S_IFIFO,
    stat.S_IFCHR,
    stat.S_IFBLK,
    stat.S_IFSOCK,
}


def fill(top: int, nodes: list[Node], directories: list[bytes], fds: ProcessFds) -> None:
    """Make the files of an empty filesystem.

    Args:
        top: fd of its root.
        nodes: their records; what is in a directory comes after it.
        directories: those that have to be there besides.
        fds: those of this process.

    Raises:
        DetachedError: a record is bad, or the filesystem is too small.
    """
    for node in nodes:
        _check(node, fds.contents)
    try:
        with WorkingDirectory(fds.proc), _Filler(top, fds) as filler:
            for path in [node.path for node in nodes if stat.S_ISDIR(node.mode)] + directories:
                filler.open_directory(path)
            for node in nodes:
                if not stat.S_ISDIR(node.mode):
                    filler.make(node)
            for node in reversed(nodes):  # last, for what is made in one changes its times
                if stat.S_ISDIR(node.mode):
                    assert node.inode is not None  # _check
                    directory = filler.open_directory(node.path)
                    set_attributes(directory, node.inode, node.mode)
    except OSError as error:
        raise DetachedError(f"can't fill a filesystem in memory: {error}") from error


class _Filler:
    """Makes files beneath a root; the working directory is a procfs."""

    def __init__(self, top: int, fds: ProcessFds) -> None:
        self._top = top
        self._fds = fds
        # Directories that are open, the one used last at the end.
        self._open: dict[bytes, Fd] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._open.values():
            fd.close()

    def open_directory(self, path: bytes) -> int:
        """Open a directory, made with those on the way if it is not there.

        Args:
            path: from the root.

        Returns:
            An fd, good until the next directories are opened.

        Raises:
            OSError: the kernel refuses it.
        """
        missing = []
        while (fd := self._find(path)) is None:
            path, name = paths.split(path)
            missing.append(name)
        for name in reversed(missing):
            os.mkdir(name, dir_fd=fd)
            path = paths.join(path, name)
            fd = self._open_known(path)
            # If no node gives it other permissions, no task can see it; but one of whatever
            # user namespace may have to bind a socket in it.
            os.fchmod(fd, 0o777)
        return fd

    def _find(self, path: bytes) -> Fd | None:
        try:
            return self._open_known(path)
        except FileNotFoundError:
            return None

    def _open_known(self, path: bytes) -> Fd:
        """Open a directory that is there, unless it is open."""
        fd = self._open.pop(path, None)
        if fd is None:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            fd, _ = kernel.open_beneath(self._top, path, flags)
            if len(self._open) >= MAX_OPEN:
                self._open.pop(next(iter(self._open))).close()
        self._open[path] = fd
        return fd

    def make(self, node: Node) -> None:
        """Make what is no directory; raises OSError when the kernel refuses it."""
        directory, name = paths.split(node.path)
        parent = self.open_directory(directory)
        if node.same_as:
            with paths.open_at(self._top, node.same_as) as other:
                os.link(b"self/fd/%d" % other, name, dst_dir_fd=parent)
            return
        assert node.inode is not None  # _check
        if stat.S_ISREG(node.mode):
            self._make_regular(node.mode, node.inode, parent, name)
        else:
            _make_special(node, node.inode, parent, name)

    def _make_regular(self, mode: int, inode: Inode, parent: int, name: bytes) -> None:
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
        with Fd(os.open(name, flags, 0o600, dir_fd=parent)) as fd:
            self._fds.write_content(fd, inode)
            set_attributes(fd, inode, mode)


def _make_special(node: Node, inode: Inode, parent: int, name: bytes) -> None:
    """Make what is neither a directory nor a regular file."""
    if stat.S_ISLNK(node.mode):
        os.symlink(inode.target, name, dir_fd=parent)
    else:
        os.mknod(name, stat.S_IFMT(node.mode) | 0o600, node.rdev, dir_fd=parent)
    with Fd.open(name, kernel.O_PATH | os.O_NOFOLLOW, parent) as fd:
        set_attributes(b"self/fd/%d" % fd, inode, node.mode)


def _check(node: Node, reader: DataFileReader | None) -> None:
    """Refuse a record that no dump writes."""
    for path in (node.path, node.same_as or paths.ROOT):
        if path != paths.ROOT and paths.is_invalid(path):
            raise DetachedError(f"a file in memory has the invalid path {quote(path)}")
    if node.same_as:
        if stat.S_ISDIR(node.mode):
            raise DetachedError(f"{quote(node.path)} is a directory with two names")
        return
    if stat.S_IFMT(node.mode) not in _KINDS:
        raise DetachedError(f"{quote(node.path)} has the invalid mode {node.mode:#o}")
    if node.inode is None:
        raise DetachedError(f"{quote(node.path)} has no inode")
    check_inode(node.path, node.mode, node.inode, reader)
