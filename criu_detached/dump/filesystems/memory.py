# SPDX-License-Identifier: GPL-2.0-only
"""Filesystems that live in memory alone, at dump: they are saved with their contents.

Through a directory a task reaches everything up to its mount's root and down; through a
file it reaches that file alone. That, and no more, is saved: files as they are met, and
trees at the end of the dump, when it is known which mounts have a directory held.
"""

from __future__ import annotations

import os
import stat

from criu_detached import kernel, paths
from criu_detached.dump.describe.mount import DetachedMount
from criu_detached.dump.filesystems.memory_nodes import MemoryNodes
from criu_detached.dump.filesystems.memory_options import memory_options
from criu_detached.dump.filesystems.memory_roots import Roots, locate
from criu_detached.dump.inodes import inode_of
from criu_detached.dump.observe.directories import climb
from criu_detached.dump.open_file import OpenFile
from criu_detached.errors import DetachedError, quote
from criu_detached.filesystems.superblock import superblock_of
from criu_detached.images.records import RECREATED, BindSource, Filesystem, Ghost
from criu_detached.kernel.fds import Fd, reopen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from criu_detached.dump.context import DumpContext
    from criu_detached.dump.describe.new_mount import NewMount
    from criu_detached.images.records import File, Mount
    from criu_detached.paths import Name


class Memory:
    """One superblock in memory."""

    def __init__(self, number: int, new: NewMount, context: DumpContext) -> None:
        """Begin with its record.

        Args:
            number: the record's.
            new: a mount of it.
            context: of the dump.
        """
        self._context = context
        self._nodes = MemoryNodes(number, context)
        self._trees: dict[bytes, tuple[Fd, Mount]] = {}  # a directory of each, by a mount's root
        self._of_sockets: set[bytes] = set()  # directories that sockets are bound in
        self._ghosts: list[tuple[Fd, File]] = []
        self._roots = Roots(context.machine)
        self._is_saved = False
        name = new.file.fs_type.names[0]
        known = new.statmount or self._roots.lay_out(new.file)
        mounted_so = bool(new.file.statfs.flags & os.ST_RDONLY)
        self.read_only = known.read_only if known else mounted_so
        options = memory_options(new.file, known, context.machine)
        self.record = Filesystem(
            id=number,
            superblock=superblock_of(new.file.fd, name),
            source=name,
            options=[*options, b"ro"] if self.read_only else options,
        )
        context.records.filesystem(self.record)

    def describe(self, new: NewMount) -> MemoryMount:
        """Describe a mount of it.

        Args:
            new: the mount as it was met.

        Raises:
            DetachedError: the kernel does not tell where in the filesystem its root is.
        """
        root, root_deleted = self._roots.root_of(new)
        record = new.record(locate(new.file), RECREATED)
        record.root = root
        record.superblock = self.record.superblock
        record.bind_source = BindSource(mountpoint=b"/", path=paths.from_link(root))
        record.root_deleted = int(root_deleted)
        record.filesystem = self.record.id
        return MemoryMount(new, record, self)

    def save(self, file: OpenFile, path: bytes, mount: Mount) -> None:
        """Save a file that a task holds or watches; of a directory itself alone.

        Args:
            file: the file.
            path: in the filesystem.
            mount: that it is on.
        """
        self._nodes.save(file, path, mount)

    def save_whole(self, directory: int, root: bytes, mount: Mount) -> None:
        """Save all of a mount at the end.

        Args:
            directory: fd of one of it, or of a clone; it stays the caller's.
            root: path of the mount's root in the filesystem.
            mount: its record.
        """
        if root not in self._trees:
            self._trees[root] = reopen(directory, kernel.O_PATH), mount

    def save_later(self, file: OpenFile, record: File) -> None:
        """Save a file whose name is gone, and which has others; which, the trees may tell.

        Args:
            file: the file.
            record: its record.
        """
        self._nodes.await_name(file)
        self._ghosts.append((reopen(file.fd, kernel.O_PATH), record))

    def needs_directory(self, path: bytes) -> None:
        """Note a directory that a socket is bound in; whether it is there, the trees may tell.

        Args:
            path: in the filesystem.
        """
        self._of_sockets.add(path)

    def finish(self) -> Iterator[Ghost]:
        """Save the trees, once.

        Yields:
            The records of files whose names are gone: such whose other names are not saved will
            be recreated.

        Raises:
            DetachedError: something cannot be saved.
        """
        if not self._is_saved:
            self._is_saved = True
            self._roots.close()
            self._save_trees()
            self._check_sockets()
        while self._ghosts:
            fd, record = self._ghosts.pop(0)
            with fd:
                yield self._ghost(OpenFile.of(fd), record)
        self._nodes.close()

    def _save_trees(self) -> None:
        for root, (directory, mount) in sorted(self._trees.items()):
            with climb(directory) as top:
                self._nodes.save_tree(top, root, mount)

    def _check_sockets(self) -> None:
        for path in self._of_sockets - self._nodes.directories:
            if any(_is_below(path, root) for root in self._trees):
                raise DetachedError(
                    f"a socket is bound in the directory {quote(path)} of a filesystem in memory,"
                    " which is deleted, so no socket can be bound there again: close it"
                )

    def _ghost(self, file: OpenFile, record: File) -> Ghost:
        ghost = Ghost(file=record, alias=self._nodes.path_of(file))
        if not ghost.alias:  # no task can reach its other names
            ghost.inode = inode_of(file, self._context.contents)
        return ghost


class MemoryMount(DetachedMount):
    """A detached mount of such a filesystem: there is nothing to compare its files with."""

    is_clone = False

    ROOT_IS_THERE = (
        "it is the root of its mount and deleted, and was found too late, in a socket:"
        " receive it before the dump"
    )

    def __init__(self, new: NewMount, record: Mount, memory: Memory) -> None:
        """Take what is known.

        Args:
            new: the mount as it was met.
            record: its record.
            memory: the filesystem.
        """
        super().__init__(new, record, memory.read_only)
        self._memory = memory

    def _path_of(self, path: bytes) -> bytes:
        """Path in the filesystem of one beneath the mount's root."""
        return paths.join(self.bind_source.path, path)

    def note_directory_held(self, fd: int) -> None:
        """Have all of it saved."""
        if stat.S_ISDIR(kernel.fstat(fd).mode):
            self._memory.save_whole(fd, self.bind_source.path, self.record)

    def locate(self, file: OpenFile) -> Name:
        """Say where a file's link says it is."""
        return locate(file)

    def save(self, file: OpenFile, record: File) -> None:
        """Save a file with its content."""
        self._memory.save(file, self._path_of(record.path), self.record)

    def save_other_name(self, file: OpenFile) -> None:
        """Save the file if it was not, for the name that was met first may be deleted."""
        name = locate(file)
        if not name.deleted:
            self._memory.save(file, self._path_of(name.path), self.record)

    def save_at_end(self, file: OpenFile, record: File) -> bool:
        """Put off a deleted file that has other names, if it is no directory."""
        if not file.stat.nlink or file.is_directory:
            return False
        self._memory.save_later(file, record)
        return True

    def check_socket_directory(self, path: bytes) -> None:
        """See at the end whether the directory is saved."""
        self._memory.needs_directory(self._path_of(path))

    def confine(self) -> None:
        """Nothing in it may give a task in a user namespace what that has not."""
        self.record.attr |= kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV

    def way_back(self) -> str:
        """Say that the filesystem will be recreated."""
        return "is on a filesystem that will be made anew"

    def finish(self) -> Iterator[Ghost]:
        """Save the filesystem."""
        return self._memory.finish()


def _is_below(path: bytes, root: bytes) -> bool:
    return path == root or root == paths.ROOT or path.startswith(root + b"/")
