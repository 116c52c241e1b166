# SPDX-License-Identifier: GPL-2.0-only
"""Mounts, each given by a file on it: cloning, attaching, and changing their attributes.

Constants are those of linux/mount.h and linux/fcntl.h.
"""

from __future__ import annotations

import os

from criu_detached._kernel import ffi, lib
from criu_detached.kernel.calls import checked, checked_fd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached._kernel import MountAttr
    from criu_detached.kernel.fds import Fd

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR__ATIME = 0x70
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_STRICTATIME = 0x20
MOUNT_ATTR_NODIRATIME = 0x80
MOUNT_ATTR_IDMAP = 0x100000
MOUNT_ATTR_NOSYMFOLLOW = 0x200000

# Propagation.
MS_PRIVATE = 0x40000

# For open_tree(2).
OPEN_TREE_CLONE = 0x1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
AT_EMPTY_PATH = 0x1000


def mnt_id_unique(fd: int) -> int:
    """Return a mount's 64-bit id, never reused (statx(2) STATX_MNT_ID_UNIQUE, Linux 6.8)."""
    found = ffi.new("uint64_t *")
    checked(lib.sys_mnt_id_unique(fd, found), "statx")
    return int(found[0])


def open_tree(dirfd: int, path: bytes, flags: int) -> Fd:
    """open_tree(2), Linux 5.2; the fd is the caller's."""
    return checked_fd(lib.sys_open_tree(dirfd, path, flags), "open_tree")


def clone_mount(fd: int) -> Fd:
    """Clone a mount: open_tree(2) with OPEN_TREE_CLONE, without what is mounted below.

    Args:
        fd: a file or directory on it, which is the root of the clone.

    Returns:
        A tree fd, the caller's.

    Raises:
        OSError: EINVAL where the mount is in another namespace, or unbindable.
    """
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH
    return open_tree(fd, b"", flags)


def mount_attr(attr_set: int, attr_clr: int, userns_fd: int = -1) -> MountAttr:
    """Return a struct mount_attr.

    Args:
        attr_set: MOUNT_ATTR_*.
        attr_clr: likewise.
        userns_fd: a user namespace with the id-maps, for MOUNT_ATTR_IDMAP; -1: none.
    """
    attr: MountAttr = ffi.new("struct uapi_mount_attr *")
    attr.attr_set = attr_set
    attr.attr_clr = attr_clr
    attr.userns_fd = max(userns_fd, 0)
    return attr


def mount_setattr(
    fd: int, attr_set: int, attr_clr: int, userns_fd: int = -1, propagation: int = 0
) -> None:
    """mount_setattr(2) on the mount of a tree fd, Linux 5.12.

    Args:
        fd: the tree fd.
        attr_set: as of mount_attr().
        attr_clr: likewise.
        userns_fd: likewise.
        propagation: MS_*; 0 leaves it.

    Raises:
        OSError: the kernel refuses them.
    """
    attr = mount_attr(attr_set, attr_clr, userns_fd)
    attr.propagation = propagation
    checked(lib.sys_mount_setattr(fd, attr), "mount_setattr")


def attach(tree: int, target: int) -> None:
    """move_mount(2): attach a tree on top of an open directory, or file if its root is one."""
    checked(lib.sys_move_mount(tree, target), "move_mount")
