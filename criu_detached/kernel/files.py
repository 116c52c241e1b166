# SPDX-License-Identifier: GPL-2.0-only
"""Files: what the kernel says of one, and opening one, by its path or by its handle.

Constants are those of linux/openat2.h, linux/fcntl.h and linux/stat.h.
"""

from __future__ import annotations

import os
import stat

from criu_detached._kernel import ffi, lib
from criu_detached.kernel.calls import checked, checked_fd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached import _kernel
    from criu_detached.kernel.fds import Fd

O_PATH = os.O_PATH | os.O_CLOEXEC
O_NOFOLLOW = os.O_NOFOLLOW

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

# A path of a record stays in its mount, whatever the filesystem holds by now.
STAY_BENEATH = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV

# A mountpoint is reached across mounts; mountinfo paths hold no symlinks.
REACH_MOUNT = RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS

# For name_to_handle_at(2): the handle need not open again (Linux 6.5).
AT_HANDLE_FID = 0x200

_FROZEN = 0x10 | 0x20  # STATX_ATTR_IMMUTABLE and STATX_ATTR_APPEND

_AT_FDCWD = -100  # linux/fcntl.h


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
        """Tell an immutable or append-only file: it gets no name more, a directory loses none."""
        return bool(self.attributes & _FROZEN)


_found: _kernel.FileFacts = ffi.new("struct file_facts *")


def fstat(fd: int) -> FileStat:
    """Return what statx(2) says of an open file, with its mount id (Linux 5.8)."""
    checked(lib.sys_fstat(fd, _found), "statx")
    return FileStat(_found)


def glance(path: str | bytes, dirfd: int = _AT_FDCWD) -> FileStat:
    """Return what is known of a path without a question to its filesystem, which may hang.

    Mount id and device are told in any case, all else where the kernel has it (mode is not 0).

    Args:
        path: it may be a link of procfs.
        dirfd: where a relative path starts; an empty one is the fd itself.

    Raises:
        OSError: ENOENT, ESRCH: it is gone; EACCES: there is no looking at the process.

    Source: statx(2), AT_STATX_DONT_SYNC and a mask of 0; fuse_getattr, fs/fuse/dir.c.
    """
    name = path if isinstance(path, bytes) else os.fsencode(path)
    checked(lib.sys_glance(dirfd, name, _found), "statx")
    return FileStat(_found)


def stat_beneath(dirfd: int, path: bytes, resolve: int = STAY_BENEATH) -> FileStat:
    """Return what statx(2) says of a path beneath a directory; its last part is not followed.

    Args:
        dirfd: the directory.
        path: beneath it.
        resolve: RESOLVE_*.

    Raises:
        OSError: it is not there, or leaves the directory (EXDEV) or leads through a link (ELOOP).

    Source: openat2(2), Linux 5.6.
    """
    checked(lib.sys_stat_beneath(dirfd, path, resolve, _found), "openat2")
    return FileStat(_found)


def open_beneath(dirfd: int, path: bytes, flags: int) -> tuple[Fd, FileStat]:
    """Open a path that stays beneath a directory.

    Args:
        dirfd: the directory.
        path: beneath it.
        flags: of open(2).

    Returns:
        The fd, which is the caller's, and what statx(2) says of the file.

    Raises:
        OSError: as stat_beneath.
    """
    fd = lib.sys_open_beneath(dirfd, path, flags, STAY_BENEATH, _found)
    return checked_fd(fd, "openat2"), FileStat(_found)


def openat2(dirfd: int, path: bytes, flags: int, resolve: int) -> Fd:
    """openat2(2), Linux 5.6; the fd is the caller's."""
    return checked_fd(lib.sys_openat2(dirfd, path, flags, resolve), "openat2")


class StatFs:
    """fstatfs(2)'s answer: filesystem magic, filesystem id, and ST_* flags."""

    __slots__ = ("flags", "fsid", "magic")

    def __init__(self, magic: int, fsid: int, flags: int) -> None:
        self.magic = magic
        self.fsid = fsid
        self.flags = flags


def fstatfs(fd: int) -> StatFs:
    """Return what fstatfs(2) says of an open file."""
    out = ffi.new("uint64_t[3]")
    checked(lib.sys_fstatfs(fd, out), "fstatfs")
    return StatFs(out[0], out[1], out[2])


def superblock_dev(fd: int) -> int:
    """Return the device of an open file's superblock, which on some filesystems is not st_dev.

    Source: fdinfo of an inotify fd, proc_pid_fdinfo(5).
    """
    dev = ffi.new("uint64_t *")
    checked(lib.sys_superblock_dev(fd, dev), "inotify")
    return int(dev[0])


def is_same_inode(fd: int, other: int) -> bool:
    """Tell whether two open files are one inode, also where numbers or handles repeat.

    Args:
        fd: one file, O_PATH will do.
        other: the other one, likewise.

    Raises:
        OSError: the files may not be watched, or there are too many watches.

    Source: inotify(7): one instance has one watch for each inode.
    """
    return bool(checked(lib.sys_is_same_inode(fd, other), "inotify"))


def fs_uuid(fd: int) -> bytes:
    """Return a filesystem's UUID, empty where none is told (FS_IOC_GETFSUUID, Linux 6.9)."""
    data = ffi.new("unsigned char[16]")
    result = lib.sys_fs_uuid(fd, data)
    return bytes(ffi.buffer(data))[:result] if result > 0 else b""


_kind, _size, _bytes = ffi.new("int *"), ffi.new("unsigned int *"), ffi.new("unsigned char[128]")


def name_to_handle(fd: int, flags: int = 0) -> tuple[int, bytes]:
    """Return the handle of an open file, type and bytes: name_to_handle_at(2).

    Args:
        fd: the file.
        flags: AT_HANDLE_FID for a handle that only tells files apart, Linux 6.5.

    Raises:
        OSError: ENOTSUP where the filesystem has no handles.
    """
    checked(lib.sys_file_handle(fd, flags, _kind, _bytes, _size), "name_to_handle_at")
    return int(_kind[0]), bytes(ffi.buffer(_bytes, _size[0]))


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
    fd = lib.sys_open_by_handle(mount_fd, kind, data, len(data), flags)
    return checked_fd(fd, "open_by_handle_at")


def is_directory(path: str | bytes) -> bool:
    """Tell whether a path leads to a directory, and can be followed."""
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except OSError:
        return False


def file_flags(fd: int) -> int:
    """Return the flags that a file was opened with, and those set since (F_GETFL, fcntl(2))."""
    return checked(lib.sys_file_flags(fd), "fcntl")


def is_readable(fd: int) -> bool:
    """Tell whether a file can be read through an fd."""
    flags = file_flags(fd)
    return not flags & os.O_PATH and flags & os.O_ACCMODE != os.O_WRONLY
