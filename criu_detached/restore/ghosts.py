# SPDX-License-Identifier: GPL-2.0-only
"""Makes the deleted files, ghosts, of one mount again: each an open file without a name.

A ghost gets its name for a moment, is opened, and loses the name; that fd is kept, and
every fd that the tasks had is opened through it. On the filesystem of a server it is no O_PATH
fd: of such the server knows nothing, and would delete the file for good with the name.
"""

from __future__ import annotations

import os
import stat

from criu_detached import kernel, paths
from criu_detached.filesystems.superblock import type_of
from criu_detached.images.records import File, Ghost, Inode
from criu_detached.kernel.fds import Fd
from criu_detached.restore.aliases import open_alias
from criu_detached.restore.new_files import NewFiles, open_directory, open_made
from criu_detached.restore.temporary import TemporaryNames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

    from criu_detached.restore.context import ProcessFds


class GhostBuilder:
    """Makes the ghosts of one mount, in a clone of the bind source and in the new mount.

    What is made for the moment, names and the directories to them, is gone with the end of
    the ``with`` block.
    """

    def __init__(self, source: Fd, fds: ProcessFds, keeps_inodes: bool) -> None:
        """Make nothing yet.

        Args:
            source: a writable clone of the bind source; it is closed with the builder.
            fds: those of this process.
            keeps_inodes: superblock and root are the dumped ones, so inodes are the same.
        """
        self._source = source
        self._proc = fds.proc
        self._keeps_inodes = keeps_inodes
        self._names = TemporaryNames(fds.proc)
        self._files = NewFiles(fds)

    def __enter__(self) -> Self:
        """Return the builder."""
        return self

    def __exit__(self, *_: object) -> None:
        """Take every name away that is left; raises OSError when one cannot be."""
        try:
            self._files.close()
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
            OSError: the kernel refuses it.
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
            An O_PATH fd of it, unless a server has to know of it.

        Raises:
            DetachedError: its record does not say what to make, or another file is there.
            OSError: the kernel refuses it.
        """
        file = ghost.file
        assert file is not None  # record_reader
        if file.path == paths.ROOT:
            return self._known_to_server(paths.open_at(tree, paths.ROOT))
        directory, name = paths.split(file.path)
        parent, directory = self._names.open_parent(tree, directory)
        if ghost.unnamed and ghost.inode:
            return self._files.make_unnamed(ghost.inode, parent)
        beside = parent
        if not ghost.inode:  # a link stays on one mount, and the other name is on this one
            beside, _ = self._names.open_parent(self._source, paths.join(root, directory))
        name, ino = self._give_name(ghost, parent, name, beside)
        if stat.S_ISDIR(file.mode):
            self._names.add(parent, name, is_directory=True)
            opened, kept = open_directory(parent, name)
            # What was in a deleted directory is made in it.
            self._names.add_parent(tree, file.path, opened, paths.join(directory, name))
            return kept
        try:
            return self._known_to_server(open_made(file, parent, name, ino))
        finally:
            os.unlink(name, dir_fd=parent)
            self._files.close()

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
        assert ghost.file is not None  # record_reader
        self._names.note_times(parent)
        if ghost.inode is not None:
            return self._files.make(ghost.file, ghost.inode, parent, name)
        with open_alias(ghost, self._source, self._proc, self._keeps_inodes) as other:
            return self._files.link(other, beside, name)

    def _known_to_server(self, fd: Fd) -> Fd:
        """Return an fd for which a server keeps the file when its name goes.

        Libfuse does so for open files (hide_node, lib/fuse.c).

        Args:
            fd: an O_PATH fd, which is closed if another one is returned.
        """
        try:
            served = stat.S_ISREG(kernel.fstat(fd).mode) and type_of(fd).server
            opened = Fd.open(b"self/fd/%d" % fd, os.O_RDONLY, self._proc) if served else fd
        except OSError:
            fd.close()
            raise
        if opened is not fd:
            fd.close()
        return opened


def depth(ghost: Ghost) -> tuple[int, bytes]:
    """Return the order in which ghosts are made: what is in a directory comes after it."""
    assert ghost.file is not None  # record_reader
    path = ghost.file.path
    return (-1 if path == paths.ROOT else path.count(b"/"), path)
