# SPDX-License-Identifier: GPL-2.0-only
"""Directories of detached mounts: up to their mount's root, and what is in them."""

from __future__ import annotations

import os

from criu_detached import kernel
from criu_detached.kernel.fds import Fd, link_of


def climb(directory: Fd) -> Fd:
    """Go up from a directory to the root of its mount.

    The kernel does not go above a detached mount's root (follow_dotdot, fs/namei.c), unless the
    mount is in an anonymous tree or locked to the one that it was on.

    Args:
        directory: an fd of it, which is closed.

    Returns:
        An O_PATH fd of the root, the caller's.

    Raises:
        OSError: the directory is not beneath that root.
    """
    here = kernel.fstat(directory)
    while True:
        try:
            above = Fd.open(b"..", kernel.O_PATH | os.O_DIRECTORY, directory)
        except OSError:
            directory.close()
            raise
        found = kernel.fstat(above)
        # Numbers may repeat, but the path of what is above is another one.
        is_same = found.ino == here.ino and link_of(above) == link_of(directory)
        if is_same or found.mnt_id != here.mnt_id:
            above.close()
            return directory
        directory.close()
        directory, here = above, found


def names_in(directory: int) -> list[bytes]:
    """What is in a directory of which there is an O_PATH fd; its access time stays."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOATIME
    with Fd.open(b".", flags, directory) as fd:
        return sorted(map(os.fsencode, os.listdir(fd)))
