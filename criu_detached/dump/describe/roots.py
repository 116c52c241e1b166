# SPDX-License-Identifier: GPL-2.0-only
"""Where a source shows the files of a detached mount, and so its root.

Before Linux 7.0 the kernel does not tell that root. A file's link is its path from there. Where the
file's path in the whole filesystem is known, the difference between the two is the root.
"""

from __future__ import annotations

import os
import stat

from criu_detached import kernel, paths
from criu_detached.dump.observe.handles import open_on
from criu_detached.dump.open_file import OpenFile, has_handles
from criu_detached.filesystems.types import DEVPTS, is_silly_renamed
from criu_detached.kernel.fds import link_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from criu_detached.paths import Name

# Directories to look into where a filesystem has no file handles.
SEARCH_LIMIT = 20_000


class SameFile:
    """Tells which file of a source is one of a detached mount, by device and inode.

    That is for a source of the very superblock; dump/filesystems/same_file.py has the others.
    """

    # Device and inode are those of the detached mount: what compares these does not need this.
    by_number = True

    def is_at(self, file: OpenFile, root: int, path: bytes) -> bool:
        """Tell whether a path of the source leads to an open file.

        Args:
            file: on the detached mount.
            root: fd of that mount's root, as the source shows it.
            path: beneath it.

        Raises:
            OSError: there is nothing, or another mount is in the way.
        """
        found = paths.stat_at(root, path)
        return (found.dev, found.ino) == (file.stat.dev, file.stat.ino)

    def find_root(self, file: OpenFile, name: Name, source: int) -> bytes | None:
        """Find the root of a detached mount, where the kernel does not tell it.

        Args:
            file: on the detached mount.
            name: its path from that mount's root.
            source: fd of the source's root.

        Returns:
            The root's path beneath the source's; None: it is not found there.
        """
        return find_root(file, name, source)


def find_root(file: OpenFile, name: Name, source: int) -> bytes | None:
    """Find a detached mount's root through a source.

    Args:
        file: on the detached mount.
        name: its path from that mount's root.
        source: fd of the root of an attached mount, perhaps of the same filesystem.

    Returns:
        The root's path beneath the source's root, or None: not found there. The root of a
        deleted file may be deleted too.
    """
    found = _by_handle(file, name, source)
    if name.deleted:
        if found is None and file.fs_type is DEVPTS:
            return paths.ROOT  # its one directory
        return found  # no path leads to it
    if found is None and is_at(source, name.path, file):
        found = paths.ROOT
    if found is None and not has_handles(file.fd):
        found = _by_search(file, name.path, source)
    return found


def is_at(root: int, path: bytes, file: OpenFile) -> bool:
    """Tell whether a path beneath a root reaches the very file.

    Args:
        root: fd of the root.
        path: beneath it.
        file: the file.
    """
    try:
        found = paths.stat_at(root, path)
        if (found.dev, found.ino) != (file.stat.dev, file.stat.ino):
            return False
        if file.has_sure_number:
            return True
        with paths.open_at(root, path) as fd:
            return file.is_same(OpenFile.of(fd))
    except OSError:
        return False


def _by_handle(file: OpenFile, name: Name, source: int) -> bytes | None:
    """Open the file on the source by its handle, and read where it lies there."""
    inside = _path_by_handle(file, name.deleted, source)
    root = start_of(inside, name.path) if inside is not None else None
    if root is None or name.deleted:
        return root
    return root if is_at(source, paths.join(root, name.path), file) else None


def _path_by_handle(file: OpenFile, deleted: bool, source: int) -> bytes | None:
    """Where the handle of a file leads to beneath a source's root, if it is a file there."""
    if file.handle is None:
        return None
    try:
        there = open_on(source, file.handle)
    except OSError:
        return None
    with there:
        found = kernel.fstat(there)
        if (found.dev, found.ino) != (file.stat.dev, file.stat.ino):
            return None
        full = link_of(there)
    if deleted:
        if not full.endswith(paths.DELETED):
            return None  # another name of the file, which does not tell the root
        full = full.removesuffix(paths.DELETED)
    # Links show a mountpoint as this process sees it: compare within the mount.
    return paths.below(full, link_of(source))


def start_of(path: bytes, end: bytes) -> bytes | None:
    """Return where a path begins that ends with another one; None: it does not end so."""
    if end == paths.ROOT:
        return path
    if path == end:
        return paths.ROOT
    return path[: -len(end) - 1] if path.endswith(b"/" + end) else None


def _by_search(file: OpenFile, path: bytes, source: int) -> bytes | None:
    """Try each directory of the source, up to a limit; one inode must be one file."""
    if file.stat.nlink > 1 and not file.is_directory:
        return None
    for directory in _directories(source):
        if is_at(source, paths.join(directory, path), file):
            return directory
        if path == paths.ROOT and not file.is_directory:
            for name, _ in _entries(source, directory):
                if is_at(source, paths.join(directory, name), file):
                    return paths.join(directory, name)
    return None


def search_inode(source: int, file: OpenFile) -> bytes | None:
    """Look for a name of a file in the directories of a mount, up to a limit.

    Args:
        source: the mount's root.
        file: the file.

    Returns:
        Its path beneath the root, or None.
    """
    return next(names_of_inode(source, file), None)


def names_of_inode(source: int, file: OpenFile) -> Iterator[bytes]:
    """As search_inode, yield each path of a file.

    Directories need not tell the inodes of what a server has silly-renamed (readdir_ino,
    lib/fuse.c).
    """
    for directory in _directories(source):
        for name, ino in _entries(source, directory):
            path = paths.join(directory, name)
            likely = ino == file.stat.ino or is_silly_renamed(name)
            if likely and is_at(source, path, file):
                yield path


def _entries(root: int, directory: bytes) -> list[tuple[bytes, int]]:
    """Name and inode of what is in a directory."""
    try:
        fd, _ = kernel.open_beneath(root, directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        with fd, os.scandir(fd) as entries:
            return [(os.fsencode(entry.name), entry.inode()) for entry in entries]
    except OSError:
        return []  # procfs lets some be opened and not read


def _directories(root: int) -> Iterator[bytes]:
    """Yield the directories of one mount, the nearer ones first."""
    queue = [paths.ROOT]
    for count, directory in enumerate(queue):
        yield directory
        if count >= SEARCH_LIMIT:
            return
        for name, _ in _entries(root, directory):
            path = paths.join(directory, name)
            try:
                if stat.S_ISDIR(kernel.stat_beneath(root, path).mode):
                    queue.append(path)
            except OSError:
                continue
