# SPDX-License-Identifier: GPL-2.0-only
"""Every raw system call, and what the kernel prints, under the kernel's names.

``kernel.NAME`` has what most code needs: files.py and mounts.py. The other modules here have a
subject each, and are imported by their own names. Each function raises OSError naming the call
when the kernel refuses.
"""

from criu_detached.kernel.calls import zeroed
from criu_detached.kernel.files import (
    AT_HANDLE_FID,
    O_NOFOLLOW,
    O_PATH,
    REACH_MOUNT,
    RESOLVE_BENEATH,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    RESOLVE_NO_XDEV,
    STAY_BENEATH,
    FileStat,
    StatFs,
    file_flags,
    fs_uuid,
    fstat,
    fstatfs,
    glance,
    is_directory,
    is_readable,
    is_same_inode,
    name_to_handle,
    open_beneath,
    open_by_handle,
    openat2,
    stat_beneath,
    superblock_dev,
)
from criu_detached.kernel.mounts import (
    AT_EMPTY_PATH,
    MOUNT_ATTR__ATIME,
    MOUNT_ATTR_IDMAP,
    MOUNT_ATTR_NOATIME,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NODIRATIME,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_NOSYMFOLLOW,
    MOUNT_ATTR_RDONLY,
    MOUNT_ATTR_STRICTATIME,
    MS_PRIVATE,
    OPEN_TREE_CLOEXEC,
    OPEN_TREE_CLONE,
    attach,
    clone_mount,
    mnt_id_unique,
    mount_setattr,
    open_tree,
)
