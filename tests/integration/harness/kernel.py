"""The raw system calls of the test side, under the kernel's names.

The product has its own; the tests don't use them, for a wrong one would agree with itself.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import struct
from dataclasses import dataclass
from pathlib import Path

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_NOSYMFOLLOW = 256
MS_NOATIME = 1024
MS_NODIRATIME = 2048
MS_BIND = 4096
MS_MOVE = 8192
MS_REC = 16384
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MS_RELATIME = 1 << 21
MS_STRICTATIME = 1 << 24
MNT_DETACH = 2
CLONE_PARENT = 0x00008000
CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
PR_SET_CHILD_SUBREAPER = 36

AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
OPEN_TREE_CLONE = 1
MOVE_MOUNT_F_EMPTY_PATH = 4
MOUNT_ATTR_IDMAP = 0x00100000

STATMOUNT_BY_FD = 1  # Linux 7.0
STATMOUNT_SB_BASIC = 0x1
STATMOUNT_MNT_BASIC = 0x2
STATMOUNT_MNT_POINT = 0x10
STATMOUNT_MNT_NS_ID = 0x40
STATMOUNT_MNT_OPTS = 0x80
STATMOUNT_MNT_UIDMAP = 0x2000
STATMOUNT_MNT_GIDMAP = 0x4000

_NS_MNT_GET_INFO = 0x8010B70A  # linux/nsfs.h, Linux 6.12

_SYS_CLONE = 56
_SYS_PIVOT_ROOT = 155
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_PIDFD_GETFD = 438
_SYS_MOUNT_SETATTR = 442
_SYS_STATMOUNT = 457

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _check(result: int, call: str, subject: str) -> int:
    """Turn -1 into an OSError that names the call and what it was about."""
    if result < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, f"{call}: {os.strerror(errno)}", subject)
    return result


def mount(source: str, target: Path, fstype: str, flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    result = _libc.mount(
        source.encode(), os.fsencode(target), fstype.encode(), ctypes.c_ulong(flags), data.encode()
    )
    _check(result, "mount", str(target))


def bind(source: Path, target: Path, flags: int = 0, *, recursive: bool = False) -> None:
    """A bind mount; its flags need a second call."""
    mount(str(source), target, "", MS_BIND | (MS_REC if recursive else 0))
    if flags:
        mount("", target, "", MS_BIND | MS_REMOUNT | flags)


def make_private() -> None:
    """No mount made from now on shows in another namespace."""
    mount("", Path("/"), "", MS_REC | MS_PRIVATE)


def umount2(target: Path, flags: int = 0) -> None:
    """umount2(2)."""
    _check(_libc.umount2(os.fsencode(target), flags), "umount2", str(target))


def unshare(flags: int) -> None:
    """unshare(2); os.unshare needs Python 3.12."""
    _check(_libc.unshare(flags), "unshare", hex(flags))


def setns(namespace: int, kind: int = 0) -> None:
    """setns(2); os.setns needs Python 3.12."""
    _check(_libc.setns(namespace, kind), "setns", f"fd {namespace}")


def clone(flags: int) -> int:
    """clone(2) as a fork, into new namespaces; 0 in the child."""
    flags |= signal.SIGCHLD
    return _check(_libc.syscall(_SYS_CLONE, ctypes.c_ulong(flags), 0, 0, 0, 0), "clone", hex(flags))


def get_fd(pid: int, fd: int) -> int:
    """The very file that another process has open: pidfd_getfd(2)."""
    process = os.pidfd_open(pid)
    try:
        result = _libc.syscall(_SYS_PIDFD_GETFD, process, fd, 0)
        return _check(result, "pidfd_getfd", f"fd {fd} of {pid}")
    finally:
        os.close(process)


def become_subreaper() -> None:
    """Orphans below this process become its children, so it can reap what CRIU restored."""
    _check(_libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl", "PR_SET_CHILD_SUBREAPER")


def pivot_into(root: Path) -> None:
    """Make the mount at root the namespace's root and drop the old one."""
    os.chdir(root)
    _check(_libc.syscall(_SYS_PIVOT_ROOT, b".", b"."), "pivot_root", str(root))
    umount2(Path("."), MNT_DETACH)  # "." is the old root now, stacked on the new one
    os.chdir("/")


def open_tree(dirfd: int, path: str, flags: int) -> int:
    """open_tree(2), with close-on-exec."""
    flags |= os.O_CLOEXEC
    result = _libc.syscall(_SYS_OPEN_TREE, dirfd, os.fsencode(path), ctypes.c_uint(flags))
    return _check(result, "open_tree", path)


def move_mount(tree: int, target: Path) -> None:
    """Attach the tree behind an fd at target."""
    result = _libc.syscall(
        _SYS_MOVE_MOUNT, tree, b"", -100, os.fsencode(target), MOVE_MOUNT_F_EMPTY_PATH
    )
    _check(result, "move_mount", str(target))


def mount_setattr_idmap(tree: int, userns: int) -> None:
    """Give a tree that is not attached yet the id-map of a user namespace."""
    attr = struct.pack("=QQQQ", MOUNT_ATTR_IDMAP, 0, 0, userns)
    result = _libc.syscall(_SYS_MOUNT_SETATTR, tree, b"", AT_EMPTY_PATH, attr, len(attr))
    _check(result, "mount_setattr", "MOUNT_ATTR_IDMAP")


@dataclass(frozen=True)
class MountAnswer:
    """What statmount says of the mount behind an fd."""

    mask: int
    mnt_id: int
    mnt_attr: int
    uid_map: tuple[str, ...]
    gid_map: tuple[str, ...]
    options: tuple[str, ...]  # of the superblock

    @property
    def detached(self) -> bool:
        """In no namespace, so without a mount point."""
        return not self.mask & (STATMOUNT_MNT_POINT | STATMOUNT_MNT_NS_ID)


def statmount_by_fd(fd: int) -> MountAnswer:
    """statmount(2) with STATMOUNT_BY_FD: EINVAL before Linux 7.0."""
    wanted = STATMOUNT_SB_BASIC | STATMOUNT_MNT_BASIC | STATMOUNT_MNT_POINT
    wanted |= STATMOUNT_MNT_NS_ID | STATMOUNT_MNT_UIDMAP | STATMOUNT_MNT_GIDMAP
    wanted |= STATMOUNT_MNT_OPTS
    request = struct.pack("=IIQQQ", 32, fd, 0, wanted, 0)
    buffer = ctypes.create_string_buffer(16384)
    result = _libc.syscall(_SYS_STATMOUNT, request, buffer, len(buffer), STATMOUNT_BY_FD)
    _check(result, "statmount", f"fd {fd}")
    raw = buffer.raw
    uid_count, uid_at, gid_count, gid_at = struct.unpack_from("=IIII", raw, 152)
    return MountAnswer(
        mask=struct.unpack_from("=Q", raw, 8)[0],
        mnt_id=struct.unpack_from("=Q", raw, 40)[0],
        mnt_attr=struct.unpack_from("=Q", raw, 64)[0],
        uid_map=_strings(raw, uid_at, uid_count),
        gid_map=_strings(raw, gid_at, gid_count),
        options=tuple(_strings(raw, struct.unpack_from("=I", raw, 4)[0], 1)[0].split(",")),
    )


def _strings(raw: bytes, at: int, count: int) -> tuple[str, ...]:
    """The count NUL-terminated strings at an offset of statmount's string area."""
    if not count:
        return ()
    return tuple(part.decode() for part in raw[512 + at :].split(b"\0")[:count])


def has_statmount_by_fd() -> bool:
    """Whether this kernel (7.0 or newer) classifies mounts by fd."""
    fd = os.open("/", os.O_PATH)
    try:
        statmount_by_fd(fd)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def walks_namespaces() -> bool:
    """Whether this kernel (6.12 or newer) tells of mount namespaces without a process too."""
    with open("/proc/self/ns/mnt") as namespace:
        try:
            fcntl.ioctl(namespace, _NS_MNT_GET_INFO, bytes(16))
        except OSError:
            return False
    return True
