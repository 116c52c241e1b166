# SPDX-License-Identifier: GPL-2.0-only
"""The root of a detached mount within its filesystem, on kernels that do not tell it.

A file's link is its path from the mount's root. Where the file's path in the whole
filesystem is known, the difference between the two is the root.
"""

from __future__ import annotations

import os
import stat

from criu_detached import kernel, paths
from criu_detached.dump.describe.sources import Source
from criu_detached.dump.observe.handles import open_on
from criu_detached.dump.open_file import handle_of, has_handles
from criu_detached.filesystems.superblock import type_of
from criu_detached.filesystems.types import DEVPTS, is_silly_renamed
from criu_detached.kernel import FileStat
from criu_detached.kernel.fds import link_of
from criu_detached.paths import Name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# Directories to look into where a filesystem has no file handles.
SEARCH_LIMIT = 20_000


def find_root(fd: int, name: Name, facts: FileStat, source: Source) -> bytes | None:
    """Find a detached mount's root through a source.

    Args:
        fd: a file on the detached mount.
        name: its path from that mount's root.
        facts: of the file.
        source: an attached mount, perhaps of the same filesystem.

    Returns:
        The root's path beneath the source's root, or None: not found there. The root of a
        deleted file may be deleted too.
    """
    path = name.path
    found = _by_handle(fd, name, facts, source)
    if name.deleted:
        if found is None and type_of(fd) is DEVPTS:
            return paths.ROOT  # its one directory
        return found  # no path leads to it
    if found is None and is_at(source.fd, path, facts):
        found = paths.ROOT
    if found is None and not has_handles(fd):
        found = _by_search(path, facts, source)
    return found


def is_at(root: int, path: bytes, facts: FileStat) -> bool:
    """Tell whether a path beneath a root reaches the very file.

    Args:
        root: fd of the root.
        path: beneath it.
        facts: of the file.
    """
    try:
        found = paths.facts_at(root, path)
    except OSError:
        return False
    return (found.dev, found.ino) == (facts.dev, facts.ino)


def _by_handle(fd: int, name: Name, facts: FileStat, source: Source) -> bytes | None:
    """Open the file on the source by its handle, and read where it lies there."""
    handle = handle_of(fd)
    try:
        there = open_on(source.fd, handle) if handle is not None else None
    except OSError:
        return None
    if there is None:
        return None
    with there:
        if (found := kernel.fstat(there)).ino != facts.ino or found.dev != facts.dev:
            return None
        full = link_of(there)
        # Links show a mountpoint as this process sees it: compare within the mount.
        base = link_of(source.fd)
    if name.deleted:
        if not full.endswith(paths.DELETED):
            return None  # another name of the file, which does not tell the root
        full = full.removesuffix(paths.DELETED)
    inside = paths.below(full, base)
    if inside is None:
        return None
    root = _strip(inside, name.path)
    if root is None or name.deleted:
        return root
    return root if is_at(source.fd, paths.join(root, name.path), facts) else None


def _strip(inside: bytes, path: bytes) -> bytes | None:
    if path == paths.ROOT:
        return inside
    if inside == path:
        return paths.ROOT
    return inside[: -len(path) - 1] if inside.endswith(b"/" + path) else None


def _by_search(path: bytes, facts: FileStat, source: Source) -> bytes | None:
    """Try each directory of the source, up to a limit; one inode must be one file."""
    if facts.nlink > 1 and not stat.S_ISDIR(facts.mode):
        return None
    for directory in _directories(source.fd):
        if is_at(source.fd, paths.join(directory, path), facts):
            return directory
        if path == paths.ROOT and not stat.S_ISDIR(facts.mode):
            for name, _ in _entries(source.fd, directory):
                if is_at(source.fd, paths.join(directory, name), facts):
                    return paths.join(directory, name)
    return None


def search_inode(source: int, facts: FileStat) -> bytes | None:
    """Look for a name of a file in the directories of a mount, up to a limit.

    Args:
        source: the mount's root.
        facts: of the file.

    Returns:
        Its path beneath the root, or None.
    """
    return next(names_of_inode(source, facts), None)


def names_of_inode(source: int, facts: FileStat) -> Iterator[bytes]:
    """As search_inode, yield each path of a file.

    Directories need not tell the inodes of what a server has hidden (readdir_ino, lib/fuse.c).
    """
    for directory in _directories(source):
        for name, ino in _entries(source, directory):
            path = paths.join(directory, name)
            if (ino == facts.ino or is_silly_renamed(name)) and is_at(source, path, facts):
                yield path


def _entries(root: int, directory: bytes) -> list[tuple[bytes, int]]:
    """Name and inode of what is in a directory."""
    try:
        fd, _ = kernel.open_beneath(root, directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        with os.scandir(fd) as entries:
            return [(os.fsencode(entry.name), entry.inode()) for entry in entries]
    except OSError:
        return []  # procfs lets some be opened and not read
    finally:
        os.close(fd)


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
