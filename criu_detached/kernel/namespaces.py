# SPDX-License-Identifier: GPL-2.0-only
"""Mount namespaces: a walk over all, mounts of others, and one of this process's own."""

from __future__ import annotations

import errno
import os

from criu_detached._kernel import ffi, lib
from criu_detached.kernel import checked
from criu_detached.kernel.fds import Fd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


def mount_ns_ids() -> Iterator[int]:
    """Yield the ids of all mount namespaces that this one may see, processes or not.

    Source: ioctl_nsfs(2) NS_MNT_GET_INFO, _NEXT and _PREV, Linux 6.12.

    Raises:
        OSError: ENOTTY before 6.12.
    """
    for fd in mount_ns_fds():
        yield mount_ns_id(fd)


def mount_ns_id(fd: int) -> int:
    """The id of a mount namespace, by an fd of it; raises OSError before Linux 6.12."""
    found = ffi.new("uint64_t *")
    checked(lib.sys_mount_ns_id(fd, found), "NS_MNT_GET_INFO")
    return int(found[0])


def mount_ns_fds() -> Iterator[int]:
    """Yield an fd of each of these namespaces, this one's first; it is closed after.

    Raises:
        OSError: ENOTTY before 6.12.
    """
    own = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield own
        for backwards in (0, 1):
            yield from _namespaces_from(own, backwards)
    finally:
        os.close(own)


def _namespaces_from(start: int, backwards: int) -> Iterator[int]:
    found = ffi.new("uint64_t *")
    fd = os.dup(start)
    try:
        while (following := lib.sys_next_mount_ns(fd, backwards, found)) != -errno.ENOENT:
            checked(following, "NS_MNT_GET_NEXT")
            os.close(fd)
            fd = following
            yield fd
    finally:
        os.close(fd)


def clone_mount_visiting(ns_fd: int, own_ns_fd: int, fd: int) -> Fd:
    """As clone_mount, for a mount of another mount namespace, which is entered for it.

    Args:
        ns_fd: that namespace.
        own_ns_fd: where to come back to.
        fd: the root of the clone.

    Raises:
        OSError: EINVAL when this task shares its root and directory with another (setns(2)).
    """
    result = lib.sys_clone_mount_visiting(ns_fd, own_ns_fd, fd)
    return Fd(checked(result, "setns or open_tree"))


def attach_visiting(ns_fd: int, own_ns_fd: int, tree: int, target: int) -> int:
    """As attach, in another mount namespace, which is entered for it; see clone_mount_visiting."""
    result = lib.sys_attach_visiting(ns_fd, own_ns_fd, tree, target)
    return checked(result, "setns or move_mount")


def rehearse_clone(
    ns_fd: int, user_ns_fd: int, fd: int, attr_set: int, attr_clr: int, userns_fd: int = -1
) -> None:
    """clone_mount and mount_setattr as another process would, in a child, for a trial.

    Args:
        ns_fd: its mount namespace.
        user_ns_fd: its user namespace, where that is another than this process's; else -1.
        fd: the root of what it would clone.
        attr_set: as for mount_setattr.
        attr_clr: likewise.
        userns_fd: likewise.

    Raises:
        OSError: it would not work there.
    """
    result = lib.sys_rehearse_clone(ns_fd, user_ns_fd, fd, attr_set, attr_clr, userns_fd)
    checked(result, "open_tree or mount_setattr")


def clone_in_one_of(ns_fds: list[int], fd: int) -> Fd:
    """As clone_mount, of an anonymous mount, by a child in one of some mount namespaces.

    Args:
        ns_fds: the namespaces; the mount was made in one of them.
        fd: what is to be the root of the clone. What is mounted below is left out.

    Raises:
        OSError: EINVAL when the mount is cloned in none of them.
    """
    result = lib.sys_clone_in_one_of(ns_fds, len(ns_fds), fd)
    return Fd(checked(result, "clone an anonymous mount"))


def root_with_proc(name: bytes) -> Fd:
    """Make a tree of an empty tmpfs and, at a name in it, this process's procfs.

    It is in no mount namespace; the mounts end when the fd, the caller's, and all its
    duplicates are closed.

    Source: open_tree(2) with OPEN_TREE_CLONE and AT_RECURSIVE, in a mount namespace of a
    child's own.
    """
    return Fd(checked(lib.sys_root_with_proc(name), "mount or open_tree"))


def user_namespace(uid_map: bytes, gid_map: bytes) -> Fd:
    """Make a user namespace with the given maps, for MOUNT_ATTR_IDMAP.

    Args:
        uid_map: lines as /proc/PID/uid_map takes them, user_namespaces(7).
        gid_map: likewise.

    Returns:
        An fd of it, the caller's; the namespace lives as long as something holds it.
    """
    return Fd(checked(lib.sys_userns(uid_map, gid_map), "user namespace"))


class PrivateNamespace:
    """A mount namespace for this process alone, for as long as the with block lasts.

    Mounts of it are seen nowhere else. Their files and clones outlive it.

    Raises:
        OSError: on the way in, the kernel refused it; on the way out, this process is left
            in the wrong namespace and has to end.
    """

    def __enter__(self) -> None:
        self._place = ffi.new("int[3]")
        checked(lib.sys_enter_private_ns(self._place), "unshare")

    def __exit__(self, *_: object) -> None:
        checked(lib.sys_leave_private_ns(self._place), "setns")
