# SPDX-License-Identifier: GPL-2.0-only
"""From the record of a deleted file to an fd of it, whose name is gone again.

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
from criu_detached.images.datafile import DataFileReader
from criu_detached.images.records import File, Ghost, Inode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# Appended to a name that something else has by now, as CRIU does (open_path, criu/files-reg.c).
TAKEN = b".cr_link"

_NO_TMPFILE = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOSYS}
_TRIES = 100
_NAME_MAX = 255  # bytes, linux/limits.h


class Workshop:
    """Where the ghosts of one mount are made: in a clone of the bind source and the new mount.

    What is made for the moment, names and the directories to them, is gone with ``close``,
    and the times of the directories that were there before are as they were.
    """

    def __init__(
        self, source: int, proc: int, reader: DataFileReader | None, keeps_inodes: bool
    ) -> None:
        """Open it.

        Args:
            source: a writable clone of the bind source; it is closed with the workshop.
            proc: fd of a procfs that shows this task its fds; it stays the caller's.
            reader: of the data file; None: there is none.
            keeps_inodes: superblock and root are the dumped ones, so inodes are the same.
        """
        self._source = source
        self._proc = proc
        self._reader = reader
        self._keeps_inodes = keeps_inodes
        self._names: list[tuple[int, bytes, bool]] = []  # parent, name, is it a directory?
        self._parents: dict[tuple[int, bytes], tuple[int, bytes]] = {}
        self._times: list[tuple[int, int, int]] = []  # directory, access and modification
        self._made: list[int] = []  # files that are open for now

    def close(self) -> None:
        """Take every name away that is left; raises OSError when one cannot be."""
        self._let_go()
        failed = None
        for parent, name, is_directory in reversed(self._names):
            try:
                (os.rmdir if is_directory else os.unlink)(name, dir_fd=parent)
            except OSError as error:
                failed = failed or error  # the others go all the same
        try:
            for directory, atime, mtime in reversed(self._times):
                os.utime(directory, ns=(atime, mtime))
        finally:
            for fd, _ in self._parents.values():
                os.close(fd)
            os.close(self._source)
        if failed:
            raise failed

    def make_root(self, path: bytes, mode: int, ghost: Ghost | None) -> bytes:
        """Give the deleted root of a mount a name.

        Args:
            path: the one that it had, beneath the bind source's root.
            mode: its type.
            ghost: its record; None: the tasks held only what was beneath it.

        Returns:
            The path that it has now, until the workshop is closed.

        Raises:
            DetachedError: its record does not say what to make.
            OSError: the kernel refused it.
        """
        if ghost is None:
            ghost = Ghost(file=File(mode=mode, path=path), inode=Inode())
        directory, name = paths.split(path)
        parent, directory = self._parent(self._source, directory)
        name, _ = self._give_name(ghost, parent, name, parent)
        assert ghost.file is not None  # record_reader
        self._names.append((parent, name, stat.S_ISDIR(ghost.file.mode)))
        return paths.join(directory, name)

    def make(self, ghost: Ghost, tree: int, root: bytes) -> int:
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
        parent, directory = self._parent(tree, directory)
        if ghost.unnamed and ghost.inode:
            return self._make_unnamed(ghost.inode, parent)
        beside = parent
        if not ghost.inode:  # a link stays on one mount, and the other name is on this one
            beside, _ = self._parent(self._source, paths.join(root, directory))
        name, ino = self._give_name(ghost, parent, name, beside)
        if stat.S_ISDIR(file.mode):
            self._names.append((parent, name, True))
            return self._keep_directory(tree, file.path, parent, paths.join(directory, name))
        try:
            return self._known_to_server(_open_made(file, parent, name, ino))
        finally:
            os.unlink(name, dir_fd=parent)
            self._let_go()

    def _let_go(self) -> None:
        """Close what was kept open for its inode number to last."""
        while self._made:
            os.close(self._made.pop())

    def _known_to_server(self, fd: int) -> int:
        """Keep what a server serves open, for it to keep the file when its name goes.

        Libfuse does so (hide_node, lib/fuse.c).

        Args:
            fd: an O_PATH fd, which is closed if another one is returned.
        """
        if not stat.S_ISREG(kernel.fstat(fd).mode) or not type_of(fd).server:
            return fd
        try:
            return os.open(b"self/fd/%d" % fd, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._proc)
        finally:
            os.close(fd)

    def _keep_directory(self, tree: int, path: bytes, parent: int, actual: bytes) -> int:
        """What was in a deleted directory is made in it, so it is a parent from here on."""
        name = paths.split(actual)[1]
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        opened = os.open(name, flags, dir_fd=parent)
        kept = kernel.open_tree(opened, b"", kernel.AT_EMPTY_PATH | kernel.OPEN_TREE_CLOEXEC)
        if (tree, path) in self._parents:  # of another one that had the same name
            os.close(opened)
        else:
            self._parents[tree, path] = opened, actual
        return kept

    def _make_unnamed(self, inode: Inode, parent: int) -> int:
        """As O_TMPFILE made it, so that linkat(2) can still give it a name."""
        fd = os.open(b".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=parent)
        try:
            self._fill(fd, inode)
            return kernel.open_tree(fd, b"", kernel.AT_EMPTY_PATH | kernel.OPEN_TREE_CLOEXEC)
        finally:
            os.close(fd)

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
        assert file is not None
        self._note_times(parent)
        if inode is None:
            return self._link_alias(ghost, beside, name)
        kind = stat.S_IFMT(file.mode)
        if kind == stat.S_IFREG:
            return self._make_regular(inode, parent, name)
        if kind == stat.S_IFDIR:
            return _first_free(name, lambda free: os.mkdir(free, 0o700, dir_fd=parent)), 0
        if kind == stat.S_IFLNK:
            target = inode.target
            return _first_free(name, lambda free: os.symlink(target, free, dir_fd=parent)), 0
        mode = kind | 0o600
        return _first_free(name, lambda free: os.mknod(free, mode, file.rdev, dir_fd=parent)), 0

    def _make_regular(self, inode: Inode, parent: int, name: bytes) -> tuple[bytes, int]:
        flags = os.O_RDWR | os.O_CLOEXEC
        try:
            fd = os.open(b".", os.O_TMPFILE | flags, 0o600, dir_fd=parent)
        except OSError as error:
            if error.errno not in _NO_TMPFILE:
                raise
            return self._make_named(inode, parent, name, flags)
        try:
            self._fill(fd, inode)
            return self._link(fd, parent, name)
        finally:
            os.close(fd)

    def _make_named(self, inode: Inode, parent: int, name: bytes, flags: int) -> tuple[bytes, int]:
        """Where a file cannot be made without a name; it stays open, see _let_go."""

        def create(free: bytes) -> None:
            how = flags | os.O_CREAT | os.O_EXCL
            self._made.append(os.open(free, how, 0o600, dir_fd=parent))

        free = _first_free(name, create)
        try:
            self._fill(self._made[-1], inode)
            return free, kernel.fstat(self._made[-1]).ino
        except BaseException:
            os.unlink(free, dir_fd=parent)
            raise

    def _fill(self, fd: int, inode: Inode) -> None:
        if inode.data_size:
            assert self._reader is not None  # checks.check_ghost
            self._reader.copy(inode.data_at, inode.data_size, fd, inode.size)
        elif inode.size:
            os.ftruncate(fd, inode.size)

    def _link_alias(self, ghost: Ghost, parent: int, name: bytes) -> tuple[bytes, int]:
        other = self._open_alias(ghost)
        try:
            return self._link(other, parent, name)
        finally:
            os.close(other)

    def _open_alias(self, ghost: Ghost) -> int:
        """An O_PATH fd of a file by the name that is left of it, or by its handle."""
        file = ghost.file
        assert file is not None
        if ghost.alias:
            try:
                fd = paths.open_at(self._source, ghost.alias)
                found = kernel.fstat(fd)
                same_type = stat.S_IFMT(found.mode) == stat.S_IFMT(file.mode)
                if same_type and (not self._keeps_inodes or found.ino == file.ino):
                    return fd
                os.close(fd)
            except OSError:
                pass
        if self._keeps_inodes and file.handle is not None:
            handle = (file.handle.type, file.handle.bytes)
            mount = os.open(b"self/fd/%d" % self._source, os.O_RDONLY, dir_fd=self._proc)
            try:
                return kernel.open_by_handle(mount, handle, kernel.O_PATH)
            except OSError:
                pass
            finally:
                os.close(mount)
        raise DetachedError(
            f"{quote(file.path)} was deleted, and its other name in the bind source,"
            f" {quote(ghost.alias)}, does not lead to it any more: give it that name again"
        )

    def _link(self, fd: int, parent: int, name: bytes) -> tuple[bytes, int]:
        """linkat(2) of an open file. Through /proc, for AT_EMPTY_PATH takes a capability."""
        path = b"self/fd/%d" % fd
        free = _first_free(
            name, lambda free: os.link(path, free, src_dir_fd=self._proc, dst_dir_fd=parent)
        )
        return free, kernel.fstat(fd).ino

    def _parent(self, base: int, path: bytes) -> tuple[int, bytes]:
        """Open a directory beneath a base, made for the moment if it is not there.

        Returns:
            An fd, the workshop's, and the path that it has.
        """
        missing = []  # one may lie as deep as a path is long, so this is no recursion
        while (base, path) not in self._parents and path != paths.ROOT:
            path, name = paths.split(path)
            missing.append(name)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        if (base, path) not in self._parents:
            root = os.open(b"self/fd/%d" % base, flags, dir_fd=self._proc)
            self._parents[base, path] = root, path
        found = self._parents[base, path]
        for name in reversed(missing):
            above, up = found
            path = paths.join(path, name)
            try:
                fd, _ = kernel.open_beneath(above, name, flags)
            except OSError:
                name = self._make_directory(above, name)
                fd, _ = kernel.open_beneath(above, name, flags)
            found = self._parents[base, path] = fd, paths.join(up, name)
        return found

    def _make_directory(self, parent: int, name: bytes) -> bytes:
        self._note_times(parent)
        name = _first_free(name, lambda free: os.mkdir(free, 0o700, dir_fd=parent))
        self._names.append((parent, name, True))
        return name

    def _note_times(self, directory: int) -> None:
        """Before a name is made in a directory; refuse one in which it would have to stay."""
        if kernel.fstat(directory).is_frozen:
            raise DetachedError(
                "a directory that deleted files were in is immutable or append-only"
                f" ({quote(os.readlink(b'self/fd/%d' % directory, dir_fd=self._proc))} on its"
                " mount): use chattr -ia on it for the restore"
            )
        found = os.fstat(directory)
        self._times.append((directory, found.st_atime_ns, found.st_mtime_ns))


def _open_made(file: File, parent: int, name: bytes, ino: int) -> int:
    """An O_PATH fd of a file that was made a moment ago.

    Who may write to the directory can put another file in its place meanwhile, and that would be
    given the owner and the permissions.
    """
    fd = os.open(name, kernel.O_PATH | kernel.O_NOFOLLOW, dir_fd=parent)
    found = kernel.fstat(fd)
    kind = stat.S_IFMT(file.mode)
    device = kind in (stat.S_IFCHR, stat.S_IFBLK)
    new = found.ino == ino if ino else found.nlink == 1
    if new and stat.S_IFMT(found.mode) == kind and (not device or found.rdev == file.rdev):
        return fd
    os.close(fd)
    raise DetachedError(f"{quote(file.path)} was replaced while it was made again")


def depth(ghost: Ghost) -> tuple[int, bytes]:
    """The order in which ghosts are made: what is in a directory comes after it."""
    assert ghost.file is not None
    path = ghost.file.path
    return (-1 if path == paths.ROOT else path.count(b"/"), path)


def _first_free(name: bytes, make: Callable[[bytes], None]) -> bytes:
    """Make something under a name, or the first free one that begins so; return that."""
    for number in range(_TRIES):
        suffix = TAKEN + (b"%d" % number if number > 1 else b"") if number else b""
        free = name[: _NAME_MAX - len(suffix)] + suffix
        try:
            make(free)
        except FileExistsError:
            continue
        return free
    raise FileExistsError(errno.EEXIST, "every name for it is taken", name)
