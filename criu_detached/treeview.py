# SPDX-License-Identifier: GPL-2.0-only
"""What the kernel tells of an anonymous mount, by a clone of it; that tells that it is one, too.

The kernel says nothing of a mount that is attached nowhere and yet has a tree fd (statmount(2):
ENOENT). From Linux 6.15 on it clones such a mount, in the mount namespace that it was made in
alone (check_anonymous_mnt, fs/namespace.c), and of an attached clone it tells everything.
"""

from __future__ import annotations

import errno
import os

from criu_detached import kernel, mountinfo
from criu_detached.kernel import StatMount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_WANTED = (
    kernel.STATMOUNT_SB_BASIC
    | kernel.STATMOUNT_MNT_BASIC
    | kernel.STATMOUNT_MNT_ROOT
    | kernel.STATMOUNT_MNT_POINT
    | kernel.STATMOUNT_FS_TYPE
    | kernel.STATMOUNT_MNT_UIDMAP
    | kernel.STATMOUNT_MNT_GIDMAP
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
    namespaces: list[int] = []
    try:
        for namespace in _namespaces():
            namespaces.append(os.dup(namespace))
            if len(namespaces) == _NAMESPACES_AT_ONCE and (found := _view(namespaces, fd)):
                return found
        return _view(namespaces, fd)
    finally:
        for namespace in namespaces:
            os.close(namespace)


def _view(namespaces: list[int], fd: int) -> list[StatMount]:
    try:
        found = kernel.view_clone(namespaces, fd, _WANTED)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EPERM):
            raise
        found = []
    for namespace in namespaces:
        os.close(namespace)
    namespaces.clear()
    return found


def _namespaces() -> Iterator[int]:
    """Yield an fd of each mount namespace that is seen from here, this one's first."""
    try:
        yield from kernel.mount_namespace_fds()
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
