# SPDX-License-Identifier: GPL-2.0-only
"""What the kernel tells of an anonymous mount, by a clone of it; that tells that it is one, too.

The kernel says nothing of a mount that is attached nowhere and yet has a tree fd (statmount(2):
ENOENT). From Linux 6.15 on it clones such a mount, in the mount namespace that it was made in
alone (check_anonymous_mnt, fs/namespace.c), and of an attached clone it tells everything.
"""

from __future__ import annotations

import errno
import os

from criu_detached import kernel
from criu_detached.kernel import anonymous, mountinfo, namespaces, statmount
from criu_detached.kernel.fds import Fd, link_of
from criu_detached.kernel.statmount import StatMount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeVar

    Answer = TypeVar("Answer")

# What a dump wants to know of a mount and of its superblock.
WANTED = (
    statmount.STATMOUNT_SB_BASIC
    | statmount.STATMOUNT_MNT_BASIC
    | statmount.STATMOUNT_MNT_ROOT
    | statmount.STATMOUNT_FS_TYPE
    | statmount.STATMOUNT_MNT_OPTS
    | statmount.STATMOUNT_SB_SOURCE
    | statmount.STATMOUNT_OPT_ARRAY
    | statmount.STATMOUNT_MNT_UIDMAP
    | statmount.STATMOUNT_MNT_GIDMAP
)
_NAMESPACES_AT_ONCE = 64


def view(fd: int) -> list[StatMount]:
    """Look at an anonymous mount, from a file on it downwards.

    Args:
        fd: the file, which is the root of what is seen.

    Returns:
        What statmount(2) says of its mount, then of those that are mounted below, parents
        first; nothing when the kernel clones the mount in no mount namespace: it is detached,
        or the kernel is older.

    Raises:
        OSError: it is anonymous, but there is no looking at it: ENOENT for a deleted file.
    """
    wanted = WANTED | statmount.STATMOUNT_MNT_POINT
    return _in_some_namespace(lambda spaces: anonymous.view_clone(spaces, fd, wanted)) or []


def clone(fd: int) -> int:
    """Clone an anonymous mount alone: nothing is mounted on what is seen then.

    Args:
        fd: a file on it, which is the root of the clone.

    Returns:
        The tree fd of the clone, the caller's.

    Raises:
        OSError: the kernel clones it in no mount namespace, or the file is deleted.
    """
    found = _in_some_namespace(lambda spaces: anonymous.clone_in_one_of(spaces, fd))
    if found is None:
        raise OSError(errno.EINVAL, "the mount is cloned in no mount namespace")
    return found


def climb_tree(directory: int) -> Fd:
    """An O_PATH fd, the caller's, of the root of the tree that a directory is in."""
    flags = kernel.O_PATH | os.O_DIRECTORY
    here = kernel.openat2(directory, b".", flags, 0)
    while True:
        with here:
            above = kernel.openat2(here, b"..", flags, 0)
            is_root = _is_same_place(here, above)
        here = above
        if is_root:
            return here


def _is_same_place(here: int, above: int) -> bool:
    """Tell whether what is above a directory is itself."""
    below, found = kernel.fstat(here), kernel.fstat(above)
    if (found.mnt_id, found.dev, found.ino) != (below.mnt_id, below.dev, below.ino):
        return False
    return link_of(above) == link_of(here)  # numbers may repeat


def _in_some_namespace(work: Callable[[list[int]], Answer]) -> Answer | None:
    """Do what works in one mount namespace alone; None: it works in none.

    Args:
        work: is given fds of mount namespaces, and tries each.
    """
    spaces: list[int] = []
    try:
        for space in _namespaces():
            spaces.append(os.dup(space))
            if len(spaces) == _NAMESPACES_AT_ONCE:
                found = _attempt(work, spaces)
                if found is not None:
                    return found
        return _attempt(work, spaces)
    finally:
        for space in spaces:
            os.close(space)


def _attempt(work: Callable[[list[int]], Answer], spaces: list[int]) -> Answer | None:
    try:
        return work(spaces)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EPERM):
            raise
    for space in spaces:
        os.close(space)
    spaces.clear()
    return None


def _namespaces() -> Iterator[int]:
    """Yield an fd of each mount namespace that is seen from here, this one's first."""
    try:
        yield from namespaces.mount_ns_fds()
        return
    except OSError as error:
        if error.errno not in (errno.ENOTTY, errno.EPERM, errno.EINVAL):
            raise
    for _, pids in mountinfo.namespaces():
        for pid in pids or [os.getpid()]:
            try:
                fd = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                continue  # it ended
            try:
                yield fd
            finally:
                os.close(fd)
            break
