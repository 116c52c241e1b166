# SPDX-License-Identifier: GPL-2.0-only
"""Every raw system call, under the kernel's names.

Here are those of files, and of mounts by an fd. The modules beside this one have what is asked
of statmount(2), namespaces, new mounts, other tasks and libblkid.

Each function raises OSError naming the call when the kernel refuses. Constants are those of the
uapi headers linux/mount.h, linux/openat2.h, linux/fcntl.h and statfs.h.
"""

from __future__ import annotations

import os
import stat

from criu_detached._kernel import ffi, lib
from criu_detached.kernel.fds import Fd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached import _kernel

# linux/mount.h: mount attributes
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

# linux/mount.h: propagation
MS_PRIVATE = 0x40000

# linux/mount.h: open_tree(2)
OPEN_TREE_CLONE = 0x1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
AT_EMPTY_PATH = 0x1000

# linux/fcntl.h: for name_to_handle_at(2); the handle need not open again (Linux 6.5)
AT_HANDLE_FID = 0x200

# linux/openat2.h
RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

# A path of a record stays in its mount, whatever the filesystem holds by now.
STAY_BENEATH = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV

# A mountpoint is reached across mounts; mountinfo paths hold no symlinks.
REACH_MOUNT = RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS

O_PATH = os.O_PATH | os.O_CLOEXEC
O_NOFOLLOW = os.O_NOFOLLOW


def checked(result: int, call: str) -> int:
    """Return what a call gave.

    Args:
        result: of the C side: -errno where the kernel refused.
        call: its name, for the message.

    Raises:
        OSError: the kernel refused.
    """
    if result < 0:
        raise OSError(-result, f"{call}: {os.strerror(-result)}")
    return result


_FROZEN = 0x10 | 0x20  # linux/stat.h, STATX_ATTR_IMMUTABLE and STATX_ATTR_APPEND


class FileStat:
    """What tells one file from another, as statx(2) has it."""

    __slots__ = (
        "attributes",
        "dev",
        "gid",
        "ino",
        "mnt_id",
        "mode",
        "nlink",
        "rdev",
        "size",
        "uid",
    )

    def __init__(self, found: _kernel.FileFacts) -> None:
        self.dev: int = found.dev
        self.ino: int = found.ino
        self.rdev: int = found.rdev
        self.size: int = found.size  # of regular files
        self.mnt_id: int = found.mnt_id
        self.mode: int = found.mode
        self.nlink: int = found.nlink
        self.uid: int = found.uid
        self.gid: int = found.gid
        self.attributes: int = found.attributes  # STATX_ATTR_*

    @property
    def is_frozen(self) -> bool:
        """Immutable or append-only: it gets no further name, and a directory loses none."""
        return bool(self.attributes & _FROZEN)


_facts: _kernel.FileFacts = ffi.new("struct file_facts *")


def fstat(fd: int) -> FileStat:
    """statx(2) of an open file, with its mount id (Linux 5.8)."""
    checked(lib.sys_fstat(fd, _facts), "statx")
    return FileStat(_facts)


def mnt_id_unique(fd: int) -> int:
    """The mount's 64-bit id, never reused (statx(2) STATX_MNT_ID_UNIQUE, Linux 6.8)."""
    found = ffi.new("uint64_t *")
    checked(lib.sys_mnt_id_unique(fd, found), "statx")
    return int(found[0])


def stat_beneath(dirfd: int, path: bytes, resolve: int = STAY_BENEATH) -> FileStat:
    """Facts of a path that stays beneath a directory; the last component is not followed.

    Args:
        dirfd: the directory.
        path: beneath it.
        resolve: RESOLVE_*.

    Raises:
        OSError: it is not there, or leaves the directory (EXDEV) or leads through a link (ELOOP).

    Source: openat2(2), Linux 5.6.
    """
    checked(lib.sys_stat_beneath(dirfd, path, resolve, _facts), "openat2")
    return FileStat(_facts)


def open_beneath(dirfd: int, path: bytes, flags: int) -> tuple[Fd, FileStat]:
    """Open a path that stays beneath a directory.

    Args:
        dirfd: the directory.
        path: beneath it.
        flags: of open(2).

    Returns:
        The fd, which is the caller's, and facts of the file.

    Raises:
        OSError: as stat_beneath.
    """
    fd = checked(lib.sys_open_beneath(dirfd, path, flags, STAY_BENEATH, _facts), "openat2")
    return Fd(fd), FileStat(_facts)


class StatFs:
    """fstatfs(2)'s answer: filesystem magic, filesystem id, and ST_* flags."""

    __slots__ = ("flags", "fsid", "magic")

    def __init__(self, magic: int, fsid: int, flags: int) -> None:
        self.magic = magic
        self.fsid = fsid
        self.flags = flags


def fstatfs(fd: int) -> StatFs:
    """fstatfs(2) of an open file."""
    out = ffi.new("uint64_t[3]")
    checked(lib.sys_fstatfs(fd, out), "fstatfs")
    return StatFs(out[0], out[1], out[2])


def openat2(dirfd: int, path: bytes, flags: int, resolve: int) -> Fd:
    """openat2(2), Linux 5.6; the fd is the caller's."""
    return Fd(checked(lib.sys_openat2(dirfd, path, flags, resolve), "openat2"))


def open_tree(dirfd: int, path: bytes, flags: int) -> Fd:
    """open_tree(2), Linux 5.2; the fd is the caller's."""
    return Fd(checked(lib.sys_open_tree(dirfd, path, flags), "open_tree"))


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


def mount_setattr(
    fd: int, attr_set: int, attr_clr: int, userns_fd: int = -1, propagation: int = 0
) -> None:
    """mount_setattr(2) on the mount of a tree fd, Linux 5.12.

    Args:
        fd: the tree fd.
        attr_set: MOUNT_ATTR_*.
        attr_clr: likewise.
        userns_fd: a user namespace with the id-maps, for MOUNT_ATTR_IDMAP.
        propagation: MS_*; 0 leaves it.

    Raises:
        OSError: the kernel refuses them.
    """
    result = lib.sys_mount_setattr(fd, attr_set, attr_clr, propagation, userns_fd)
    checked(result, "mount_setattr")


def attach(tree: int, target: int) -> None:
    """move_mount(2): attach a tree on top of an open directory, or file if its root is one."""
    checked(lib.sys_move_mount(tree, target), "move_mount")


def name_to_handle(fd: int, flags: int = 0) -> tuple[int, bytes]:
    """name_to_handle_at(2) of an open file: handle type and bytes.

    Args:
        fd: the file.
        flags: AT_HANDLE_FID for a handle that only tells files apart, Linux 6.5.

    Raises:
        OSError: ENOTSUP where the filesystem has no handles.
    """
    kind, size, data = ffi.new("int *"), ffi.new("unsigned int *"), ffi.new("unsigned char[128]")
    checked(lib.sys_file_handle(fd, flags, kind, data, size), "name_to_handle_at")
    return int(kind[0]), bytes(ffi.buffer(data))[: size[0]]


def open_by_handle(mount_fd: int, handle: tuple[int, bytes], flags: int) -> Fd:
    """open_by_handle_at(2): open a file on the mount of another fd.

    Args:
        mount_fd: a file on the mount, no O_PATH fd.
        handle: its type and bytes.
        flags: of open(2).

    Returns:
        The fd, the caller's.

    Raises:
        OSError: ESTALE where there is no such file; EPERM without CAP_DAC_READ_SEARCH.
    """
    kind, data = handle
    opened = lib.sys_open_by_handle(mount_fd, kind, data, len(data), flags)
    return Fd(checked(opened, "open_by_handle_at"))


def superblock_dev(fd: int) -> int:
    """The device of an open file's superblock, which on some filesystems is not st_dev.

    Source: fdinfo of an inotify fd, proc_pid_fdinfo(5).
    """
    dev = ffi.new("uint64_t *")
    checked(lib.sys_superblock_dev(fd, dev), "inotify")
    return int(dev[0])


def fs_uuid(fd: int) -> bytes:
    """FS_IOC_GETFSUUID, Linux 6.9: the filesystem's UUID, empty where there is none."""
    data = ffi.new("unsigned char[16]")
    result = lib.sys_fs_uuid(fd, data)
    return bytes(ffi.buffer(data))[:result] if result > 0 else b""


def is_directory(path: str | bytes) -> bool:
    """Tell whether a path leads to a directory, and can be followed."""
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except OSError:
        return False


def file_flags(fd: int) -> int:
    """The flags that a file was opened with, and those that were set since; fcntl(2)."""
    return checked(lib.sys_file_flags(fd), "fcntl")


def is_readable(fd: int) -> bool:
    """Tell whether a file can be read through an fd."""
    flags = file_flags(fd)
    return not flags & os.O_PATH and flags & os.O_ACCMODE != os.O_WRONLY


def zeroed(size: int) -> memoryview:
    """A buffer of zeroes; none of its pages takes memory before it is written to."""
    return memoryview(ffi.buffer(ffi.new("char[]", size)))
