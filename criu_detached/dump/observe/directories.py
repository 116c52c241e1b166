# SPDX-License-Identifier: GPL-2.0-only
"""Directories of detached mounts: up to their mount's root, and what is in them."""

from __future__ import annotations

import os
import stat

from criu_detached import kernel, paths
from criu_detached.dump.observe.processes import held_files


def climb(directory: int) -> int:
    """An O_PATH fd of the root of a directory's mount, the caller's; the directory is closed.

    The kernel does not go above a detached mount's root (follow_dotdot, fs/namei.c), unless the
    mount is in an anonymous tree or locked to the one that it was on.

    Args:
        directory: an fd of it.

    Raises:
        OSError: the directory is not beneath that root.
    """
    here = kernel.fstat(directory)
    while True:
        try:
            above = os.open(b"..", kernel.O_PATH | os.O_DIRECTORY, dir_fd=directory)
        except OSError:
            os.close(directory)
            raise
        found = kernel.fstat(above)
        if found.ino == here.ino or found.mnt_id != here.mnt_id:
            os.close(above)
            return directory
        os.close(directory)
        directory, here = above, found


def names_in(directory: int) -> list[bytes]:
    """What is in a directory of which there is an O_PATH fd; its access time stays."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOATIME
    fd = os.open(b".", flags, dir_fd=directory)
    try:
        return sorted(map(os.fsencode, os.listdir(fd)))
    finally:
        os.close(fd)


def is_directory(fd: int) -> bool:
    """Tell whether an open file is one that still has a name."""
    facts = kernel.fstat(fd)
    return stat.S_ISDIR(facts.mode) and not os.readlink(b"/proc/self/fd/%d" % fd).endswith(
        paths.DELETED
    )


def root_by_held(fd: int, mnt_id: int) -> int:
    """The root of a mount, if a directory of it is held.

    Args:
        fd: a file on it, looked at first.
        mnt_id: the mount.

    Returns:
        An O_PATH fd, the caller's; -1: no directory with a name is held.

    Raises:
        OSError: the directory is not beneath that root.
    """
    if is_directory(fd):
        return climb(os.dup(fd))
    for held in held_files(mnt_id):
        if is_directory(held):
            return climb(os.dup(held))
    return -1
