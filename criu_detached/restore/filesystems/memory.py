# SPDX-License-Identifier: GPL-2.0-only
"""From the record of a filesystem in memory to one with the same contents, at restore.

Nobody else sees it while it is filled, but its records may be hostile: no path of a node
is followed through a symlink.
"""

from __future__ import annotations

import os
import stat

from criu_detached import kernel, paths
from criu_detached.errors import DetachedError, quote
from criu_detached.images.records import Filesystem, Inode, Node
from criu_detached.kernel import new_mounts
from criu_detached.restore.checks import check_inode
from criu_detached.restore.inodes import set_attributes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.images.datafile import DataFileReader
    from criu_detached.restore.realise import Means


# What is above the limits while the filesystem is filled: directories to names of deleted
# files, which are gone at the end.
_SPARE_BYTES = 64 << 20
_SPARE_INODES = 10_000

_UNITS = {b"k": 10, b"m": 20, b"g": 30}
_LIMITS = (b"size", b"nr_inodes")
_READ_ONLY = b"ro"

_KINDS = {
    stat.S_IFREG,
    stat.S_IFDIR,
    stat.S_IFLNK,
    stat.S_IFIFO,
    stat.S_IFCHR,
    stat.S_IFBLK,
    stat.S_IFSOCK,
}


def make_memory(filesystem: Filesystem) -> int:
    """Make an empty filesystem with room to spare.

    Args:
        filesystem: its record.

    Returns:
        A tree fd of a mount of it, the caller's.

    Raises:
        DetachedError: the kernel refuses one of its options.
    """
    assert filesystem.superblock is not None
    fs_type = filesystem.superblock.fs_type
    options = [_with_room(each) for each in filesystem.options if each != _READ_ONLY]
    try:
        return new_mounts.new_mount(fs_type, filesystem.source, options)
    except OSError as error:
        raise _cannot_make(filesystem, error) from error


def set_limits(filesystem: Filesystem, tree: int) -> None:
    """Give a filesystem its own limits.

    Args:
        filesystem: its record.
        tree: the root of a mount of it.

    Raises:
        DetachedError: it holds more.
    """
    options = [
        option
        for option in filesystem.options
        if option == _READ_ONLY or option.partition(b"=")[0] in _LIMITS
    ]
    try:
        if options:
            new_mounts.remount(tree, options)
    except OSError as error:
        raise _cannot_make(filesystem, error) from error


def fill(top: int, nodes: list[Node], roots: list[bytes], means: Means) -> None:
    """Make the files of an empty filesystem.

    Args:
        top: its root.
        nodes: their records.
        roots: directories that have to be there besides.
        means: procfs and the data file.

    Raises:
        DetachedError: a record is bad, or the filesystem is too small.
    """
    for node in nodes:
        _check(node, means.reader)
    here = os.open(b".", kernel.O_PATH)
    filler = _Filler(top, means)
    try:
        os.fchdir(means.proc)  # see set_attributes
        for path in [node.path for node in nodes if stat.S_ISDIR(node.mode)] + roots:
            filler.parent(path)
        for node in nodes:
            if not stat.S_ISDIR(node.mode):
                filler.make(node)
        for node in reversed(nodes):
            if stat.S_ISDIR(node.mode):
                assert node.inode is not None  # _check
                directory = filler.parent(node.path)
                set_attributes(directory, node.inode, node.mode)
    except OSError as error:
        raise DetachedError(f"can't fill a filesystem in memory: {error}") from error
    finally:
        filler.close()
        os.fchdir(here)
        os.close(here)


class _Filler:
    """Makes files beneath a root; the current directory is a procfs."""

    def __init__(self, top: int, means: Means) -> None:
        self._top = top
        self._means = means
        # Directories that are open, the one used last at the end.
        self._open: dict[bytes, int] = {}

    def close(self) -> None:
        for fd in self._open.values():
            os.close(fd)

    def parent(self, path: bytes) -> int:
        """An fd of a directory, made on the way if it is not there."""
        missing = []
        while (fd := self._find(path)) < 0:
            path, name = paths.split(path)
            missing.append(name)
        for name in reversed(missing):
            os.mkdir(name, dir_fd=fd)
            path = paths.join(path, name)
            fd = self._find(path)
            # If no node gives it other permissions, no task can see it; but one of whatever
            # user namespace may have to bind a socket in it.
            os.fchmod(fd, 0o777)
        return fd

    def _find(self, path: bytes) -> int:
        """An fd of a directory, or -1: it is not there."""
        known = self._open.pop(path, None)
        if known is None:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            try:
                known, _ = kernel.open_beneath(self._top, path, flags)
            except FileNotFoundError:
                return -1
            if len(self._open) >= _MAX_OPEN:
                oldest = next(iter(self._open))
                os.close(self._open.pop(oldest))
        self._open[path] = known
        return known

    def make(self, node: Node) -> None:
        """Make what is no directory."""
        directory, name = paths.split(node.path)
        parent = self.parent(directory)
        if node.same_as:
            other = paths.open_at(self._top, node.same_as)
            try:
                os.link(b"self/fd/%d" % other, name, dst_dir_fd=parent)
            finally:
                os.close(other)
            return
        assert node.inode is not None  # _check
        if stat.S_ISREG(node.mode):
            flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
            fd = os.open(name, flags, 0o600, dir_fd=parent)
        else:
            self._make_special(node, node.inode, parent, name)
            fd = os.open(name, kernel.O_PATH | os.O_NOFOLLOW, dir_fd=parent)
        try:
            if stat.S_ISREG(node.mode):
                self._write(fd, node.inode)
                set_attributes(fd, node.inode, node.mode)
            else:
                set_attributes(b"self/fd/%d" % fd, node.inode, node.mode)
        finally:
            os.close(fd)

    @staticmethod
    def _make_special(node: Node, inode: Inode, parent: int, name: bytes) -> None:
        if stat.S_ISLNK(node.mode):
            os.symlink(inode.target, name, dir_fd=parent)
        else:
            os.mknod(name, stat.S_IFMT(node.mode) | 0o600, node.rdev, dir_fd=parent)

    def _write(self, fd: int, inode: Inode) -> None:
        if inode.data_size:
            assert self._means.reader is not None  # _check
            self._means.reader.copy(inode.data_at, inode.data_size, fd, inode.size)
        elif inode.size:
            os.ftruncate(fd, inode.size)


_MAX_OPEN = 64  # directories


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


def _with_room(option: bytes) -> bytes:
    name, _, value = option.partition(b"=")
    if name not in _LIMITS or not (number := _parse(value)):
        return option  # none, or in percent of the machine's memory
    return b"%s=%d" % (name, number + (_SPARE_BYTES if name == b"size" else _SPARE_INODES))


def _parse(value: bytes) -> int:
    shift = _UNITS.get(value[-1:].lower(), 0)
    digits = value[:-1] if shift else value
    return int(digits) << shift if digits.isdigit() and len(digits) < 19 else 0


def _cannot_make(filesystem: Filesystem, error: OSError) -> DetachedError:
    assert filesystem.superblock is not None
    return DetachedError(
        f"can't make a {quote(filesystem.superblock.fs_type)} as it was"
        f" ({quote(b','.join(filesystem.options))}): {error}"
    )
