# SPDX-License-Identifier: GPL-2.0-only
"""Mount namespaces: a walk over all, mounts of others, and one of this process's own."""

from __future__ import annotations

import errno
import os

from criu_detached._kernel import ffi, lib
from criu_detached.kernel.calls import checked, checked_fd
from criu_detached.kernel.fds import Fd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from criu_detached._kernel import MountAttr


def mount_ns_ids() -> Iterator[int]:
    """Yield the ids of all mount namespaces that this one may see, processes or not.

    Source: ioctl_nsfs(2) NS_MNT_GET_INFO, _NEXT and _PREV, Linux 6.12.

    Raises:
        OSError: ENOTTY before 6.12.
    """
    for fd in mount_ns_fds():
        yield mount_ns_id(fd)


def mount_ns_id(fd: int) -> int:
    """Return the id of a mount namespace, by an fd of it; raises OSError before Linux 6.12."""
    found = ffi.new("uint64_t *")
    checked(lib.sys_mount_ns_id(fd, found), "NS_MNT_GET_INFO")
    return int(found[0])


def mount_ns_fds() -> Iterator[int]:
    """Yield an fd of each of these namespaces, this one's first; it is closed after.

    Raises:
        OSError: ENOTTY before 6.12.
    """
    with Fd.open("/proc/self/ns/mnt", os.O_RDONLY) as own:
        yield own
        for backwards in (0, 1):
            yield from _namespaces_from(own, backwards)


def _namespaces_from(start: int, backwards: int) -> Iterator[int]:
    """Yield an fd of each namespace after one, or before it; that of the last one is closed."""
    unused = ffi.new("uint64_t *")
    fd = Fd(os.dup(start))
    try:
        while (following := lib.sys_next_mount_ns(fd, backwards, unused)) != -errno.ENOENT:
            checked(following, "NS_MNT_GET_NEXT")
            fd.close()
            fd = Fd(following)
            yield fd
    finally:
        fd.close()


def clone_mount_visiting(ns_fd: int, own_ns_fd: int, fd: int) -> Fd:
    """Clone a mount of another mount namespace, which is entered for it; else as clone_mount().

    Args:
        ns_fd: that namespace.
        own_ns_fd: where to come back to.
        fd: the root of the clone.

    Raises:
        OSError: EINVAL when this task shares its root and directory with another (setns(2)).
    """
    return checked_fd(lib.sys_clone_mount_visiting(ns_fd, own_ns_fd, fd), "setns or open_tree")


def attach_visiting(ns_fd: int, own_ns_fd: int, tree: int, target: int) -> int:
    """Attach a tree in another mount namespace, which is entered for it; else as attach().

    Args:
        ns_fd: that namespace.
        own_ns_fd: where to come back to.
        tree: an fd of the tree.
        target: what it covers.

    Returns:
        0.

    Raises:
        OSError: as of clone_mount_visiting().
    """
    result = lib.sys_attach_visiting(ns_fd, own_ns_fd, tree, target)
    return checked(result, "setns or move_mount")


def dry_run_clone(ns_fd: int, user_ns_fd: int, fd: int, attr: MountAttr) -> None:
    """Clone a mount and change the clone, in a child, as another process would; nothing stays.

    Args:
        ns_fd: that process's mount namespace.
        user_ns_fd: its user namespace, where that is another than this process's; else -1.
        fd: the root of what it would clone.
        attr: what it would give the clone, of mounts.mount_attr().

    Raises:
        OSError: it would not work there.
    """
    result = lib.sys_dry_run_clone(ns_fd, user_ns_fd, fd, attr)
    checked(result, "open_tree or mount_setattr")


def root_with_proc(name: bytes) -> Fd:
    """Make a tree of an empty tmpfs and, at a name in it, this process's procfs.

    It is in no mount namespace; the mounts end when the fd, the caller's, and all its
    duplicates are closed.

    Source: open_tree(2) with OPEN_TREE_CLONE and AT_RECURSIVE, in a mount namespace of a
    child's own.
    """
    return checked_fd(lib.sys_root_with_proc(name), "mount or open_tree")


def user_namespace(uid_map: bytes, gid_map: bytes) -> Fd:
    """Make a user namespace with the given maps, for MOUNT_ATTR_IDMAP.

    Args:
        uid_map: lines as /proc/PID/uid_map takes them, user_namespaces(7).
        gid_map: likewise.

    Returns:
        An fd of it, the caller's; the namespace lives as long as something holds it.
    """
    return checked_fd(lib.sys_userns(uid_map, gid_map), "user namespace")


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
