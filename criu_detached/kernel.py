# SPDX-License-Identifier: GPL-2.0-only
"""Every raw system call, under the kernel's names.

Each function raises OSError naming the call when the kernel refuses. Constants are
those of the uapi headers linux/mount.h, linux/openat2.h, linux/fcntl.h and statfs.h.
"""

from __future__ import annotations

import errno
import os
import stat
import sys

from criu_detached._kernel import ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

# linux/mount.h: mount attributes
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR__ATIME = 0x70
MOUNT_ATTR_RELATIME = 0x0
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_STRICTATIME = 0x20
MOUNT_ATTR_NODIRATIME = 0x80
MOUNT_ATTR_IDMAP = 0x100000
MOUNT_ATTR_NOSYMFOLLOW = 0x200000

# linux/mount.h: propagation
MS_PRIVATE = 0x40000

# linux/mount.h: statmount(2) request and answer bits
STATMOUNT_SB_BASIC = 0x1
STATMOUNT_MNT_BASIC = 0x2
STATMOUNT_MNT_ROOT = 0x8
STATMOUNT_MNT_POINT = 0x10
STATMOUNT_FS_TYPE = 0x20
STATMOUNT_MNT_NS_ID = 0x40
STATMOUNT_MNT_OPTS = 0x80
STATMOUNT_SB_SOURCE = 0x200  # Linux 6.13
STATMOUNT_OPT_ARRAY = 0x400  # Linux 6.13
STATMOUNT_MNT_UIDMAP = 0x2000  # Linux 6.15
STATMOUNT_MNT_GIDMAP = 0x4000

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

# linux/magic.h
PROC_SUPER_MAGIC = 0x9FA0
DEVPTS_SUPER_MAGIC = 0x1CD1
# Filesystems whose inode numbers change while they are mounted, or are made up by a server.
VOLATILE_INODES = {
    0x4D44,  # vfat
    0x2011BAB0,  # exfat
    0x65735546,  # FUSE
    0x6969,  # NFS
    0xFF534D42,  # CIFS
    0xFE534D42,  # SMB2
    0x01021997,  # 9p
}

O_PATH = os.O_PATH | os.O_CLOEXEC
O_NOFOLLOW = os.O_NOFOLLOW


def _checked(result: int, call: str) -> int:
    if result < 0:
        raise OSError(-result, f"{call}: {os.strerror(-result)}")
    return result


_FROZEN = 0x10 | 0x20  # linux/stat.h, STATX_ATTR_IMMUTABLE and STATX_ATTR_APPEND


class FileFacts:
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

    def __init__(self, found: Any) -> None:
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


_facts = ffi.new("struct file_facts *")


def fstat(fd: int) -> FileFacts:
    """statx(2) of an open file, with its mount id (Linux 5.8)."""
    _checked(lib.sys_fstat(fd, _facts), "statx")
    return FileFacts(_facts)


def stat_beneath(dirfd: int, path: bytes, resolve: int = STAY_BENEATH) -> FileFacts:
    """Facts of a path that stays beneath a directory; the last component is not followed.

    Args:
        dirfd: the directory.
        path: beneath it.
        resolve: RESOLVE_*.

    Raises:
        OSError: it is not there, or leaves the directory (EXDEV) or leads through a link (ELOOP).

    Source: openat2(2), Linux 5.6.
    """
    _checked(lib.sys_stat_beneath(dirfd, path, resolve, _facts), "openat2")
    return FileFacts(_facts)


def open_beneath(dirfd: int, path: bytes, flags: int) -> tuple[int, FileFacts]:
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
    fd = _checked(lib.sys_open_beneath(dirfd, path, flags, STAY_BENEATH, _facts), "openat2")
    return fd, FileFacts(_facts)


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
    _checked(lib.sys_fstatfs(fd, out), "fstatfs")
    return StatFs(out[0], out[1], out[2])


def openat2(dirfd: int, path: bytes, flags: int, resolve: int) -> int:
    """openat2(2), Linux 5.6; the fd is the caller's."""
    return _checked(lib.sys_openat2(dirfd, path, flags, resolve), "openat2")


def open_tree(dirfd: int, path: bytes, flags: int) -> int:
    """open_tree(2), Linux 5.2; the fd is the caller's."""
    return _checked(lib.sys_open_tree(dirfd, path, flags), "open_tree")


def clone_mount(fd: int) -> int:
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
    _checked(result, "mount_setattr")


# After the root of a mount whose root is deleted (dentry_path, fs/d_path.c).
_ROOT_DELETED = b"//deleted"


class StatMount:
    """statmount(2)'s answer: struct statmount of linux/mount.h with its strings."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self.mask = self._number(8, 8)
        self.sb_dev = os.makedev(self._number(16, 4), self._number(20, 4))
        self.sb_magic = self._number(24, 8)
        self.sb_flags = self._number(32, 4)
        self.mnt_id = self._number(40, 8)
        self.mnt_attr = self._number(64, 8)
        self.mnt_propagation = self._number(72, 8)
        # Root of the mount within its filesystem; ask for STATMOUNT_MNT_ROOT.
        self.mnt_root = self._strings(104, 1)[0]

    def _number(self, offset: int, size: int) -> int:
        return int.from_bytes(self._raw[offset : offset + size], sys.byteorder)

    def _strings(self, offset: int, count: int) -> list[bytes]:
        start = 512 + self._number(offset, 4)  # sizeof(struct statmount)
        return self._raw[start:].split(b"\0", count)[:count]

    @property
    def root_path(self) -> bytes:
        """mnt_root without the mark of a deleted one."""
        return self.mnt_root.removesuffix(_ROOT_DELETED)

    @property
    def root_deleted(self) -> bool:
        """Whether mnt_root is deleted."""
        return self.mnt_root.endswith(_ROOT_DELETED)

    @property
    def fs_type(self) -> bytes:
        """Filesystem type; ask for STATMOUNT_FS_TYPE."""
        return self._strings(36, 1)[0]

    @property
    def mnt_opts(self) -> list[bytes]:
        """Options of the superblock, escaped as in mountinfo; ask for STATMOUNT_MNT_OPTS."""
        return [option for option in self._strings(4, 1)[0].split(b",") if option]

    @property
    def mnt_point(self) -> bytes:
        """Where it is attached; ask for STATMOUNT_MNT_POINT."""
        return self._strings(108, 1)[0]

    @property
    def sb_source(self) -> bytes:
        """What it was mounted from; ask for STATMOUNT_SB_SOURCE."""
        return self._strings(124, 1)[0]

    @property
    def opt_array(self) -> list[bytes]:
        """The filesystem's own options, without any escapes; ask for STATMOUNT_OPT_ARRAY."""
        return self._strings(132, self._number(128, 4))

    @property
    def uid_map(self) -> list[bytes]:
        """Id-map lines, "inside outside count"; ask for STATMOUNT_MNT_UIDMAP (Linux 6.15)."""
        return self._strings(156, self._number(152, 4))

    @property
    def gid_map(self) -> list[bytes]:
        """As uid_map; ask for STATMOUNT_MNT_GIDMAP (Linux 6.15)."""
        return self._strings(164, self._number(160, 4))


_STATMOUNT_LIMIT = 1 << 20  # bytes of an answer


def statmount_by_fd(fd: int, mask: int) -> StatMount:
    """statmount(2) with STATMOUNT_BY_FD, Linux 7.0.

    Args:
        fd: any file on the mount.
        mask: STATMOUNT_* bits that are wanted; look at the answer's mask.

    Raises:
        OSError: EINVAL before 7.0 and for kernel-internal mounts, ENOENT for anonymous ones.
    """
    size = 4096
    while True:
        buf = ffi.new("char[]", size)
        result = lib.sys_statmount_by_fd(fd, mask, buf, size)
        if result != -errno.EOVERFLOW or size > _STATMOUNT_LIMIT:
            break
        size *= 4
    _checked(result, "statmount")
    return StatMount(bytes(ffi.buffer(buf)))


def id_maps(fd: int) -> tuple[list[bytes], list[bytes]]:
    """Uid and gid map of the mount of an open file, empty where it has none.

    Raises:
        OSError: EINVAL before Linux 7.0.
    """
    wanted = STATMOUNT_MNT_BASIC | STATMOUNT_MNT_UIDMAP | STATMOUNT_MNT_GIDMAP
    found = statmount_by_fd(fd, wanted)
    return found.uid_map, found.gid_map


def attached_id_maps(fd: int, ns_id: int = 0) -> tuple[list[bytes], list[bytes]]:
    """As id_maps, of an attached mount: from Linux 6.15 on.

    Args:
        fd: a file on the mount.
        ns_id: the mount namespace that it is in; 0: this one.

    Raises:
        OSError: the kernel does not tell, or the mount is not there.
    """
    try:
        return id_maps(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    wanted = STATMOUNT_MNT_BASIC | STATMOUNT_MNT_UIDMAP | STATMOUNT_MNT_GIDMAP
    size = _STATMOUNT_LIMIT
    buf = ffi.new("char[]", size)
    result = lib.sys_statmount_in_ns(mnt_id_unique(fd), ns_id, wanted, buf, size)
    _checked(result, "statmount")
    found = StatMount(bytes(ffi.buffer(buf)))
    return found.uid_map, found.gid_map


def has_statmount_by_fd() -> bool:
    """Tell whether the kernel has STATMOUNT_BY_FD, by asking it for the root directory."""
    fd = os.open("/", O_PATH)
    try:
        statmount_by_fd(fd, STATMOUNT_MNT_BASIC)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def mnt_id_unique(fd: int) -> int:
    """The mount's 64-bit id, never reused (statx(2) STATX_MNT_ID_UNIQUE, Linux 6.8)."""
    found = ffi.new("uint64_t *")
    _checked(lib.sys_mnt_id_unique(fd, found), "statx")
    return int(found[0])


def mount_in_ns(mnt_id: int, ns_id: int) -> bool:
    """Tell whether a mount, by its unique id, is attached in a mount namespace, by its id.

    Source: statmount(2), its mnt_ns_id from Linux 6.11; ENOENT says no.
    """
    buf = ffi.new("char[]", 512)
    result = lib.sys_statmount_in_ns(mnt_id, ns_id, STATMOUNT_MNT_BASIC, buf, 512)
    if result == -errno.ENOENT:
        return False
    _checked(result, "statmount")
    return True


def superblocks_in_ns(ns_id: int) -> set[int]:
    """Devices of the superblocks that a mount namespace, by its id, shows.

    Source: listmount(2) and statmount(2), their mnt_ns_id from Linux 6.11.
    """
    return {mount.sb_dev for mount in mounts_in_ns(ns_id, STATMOUNT_SB_BASIC)}


def mounts_in_ns(ns_id: int, mask: int) -> Iterator[StatMount]:
    """Yield what statmount(2) says of each mount of a mount namespace.

    Args:
        ns_id: of the namespace.
        mask: STATMOUNT_* bits that are wanted.

    Source: as superblocks_in_ns.
    """
    ids = ffi.new("uint64_t[512]")
    size = 512 if mask == STATMOUNT_SB_BASIC else _STATMOUNT_LIMIT
    buf = ffi.new("char[]", size)
    last = 0
    while count := _checked(lib.sys_listmount(ns_id, last, ids, 512), "listmount"):
        for index in range(count):
            result = lib.sys_statmount_in_ns(ids[index], ns_id, mask, buf, size)
            if result != -errno.ENOENT:  # gone by now
                _checked(result, "statmount")
                length = int.from_bytes(ffi.buffer(buf, 4), sys.byteorder)
                yield StatMount(bytes(ffi.buffer(buf, max(length, 512))))
        last = ids[count - 1]


def mount_namespaces() -> Iterator[int]:
    """Yield the ids of all mount namespaces that this one may see, processes or not.

    Source: ioctl_nsfs(2) NS_MNT_GET_INFO, _NEXT and _PREV, Linux 6.12.

    Raises:
        OSError: ENOTTY before 6.12.
    """
    for fd in mount_namespace_fds():
        yield mount_namespace_id(fd)


def mount_namespace_id(fd: int) -> int:
    """The id of a mount namespace, by an fd of it; raises OSError before Linux 6.12."""
    found = ffi.new("uint64_t *")
    _checked(lib.sys_mount_ns_id(fd, found), "NS_MNT_GET_INFO")
    return int(found[0])


def mount_namespace_fds() -> Iterator[int]:
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
            _checked(following, "NS_MNT_GET_NEXT")
            os.close(fd)
            fd = following
            yield fd
    finally:
        os.close(fd)


def clone_mount_visiting(ns_fd: int, own_ns_fd: int, fd: int) -> int:
    """As clone_mount, for a mount of another mount namespace, which is entered for it.

    Args:
        ns_fd: that namespace.
        own_ns_fd: where to come back to.
        fd: the root of the clone.

    Raises:
        OSError: EINVAL when this task shares its root and directory with another (setns(2)).
    """
    return _checked(lib.sys_clone_mount_visiting(ns_fd, own_ns_fd, fd), "setns or open_tree")


def root_with_proc(name: bytes) -> int:
    """Make a tree of an empty tmpfs and, at a name in it, this process's procfs.

    It is in no mount namespace; the mounts end when the fd, the caller's, and all its
    duplicates are closed.

    Source: open_tree(2) with OPEN_TREE_CLONE and AT_RECURSIVE, in a mount namespace of a
    child's own.
    """
    return _checked(lib.sys_root_with_proc(name), "mount or open_tree")


def attach_visiting(ns_fd: int, own_ns_fd: int, tree: int, target: int) -> int:
    """As attach, in another mount namespace, which is entered for it; see clone_mount_visiting."""
    result = lib.sys_attach_visiting(ns_fd, own_ns_fd, tree, target)
    return _checked(result, "setns or move_mount")


def name_to_handle(fd: int, flags: int = 0) -> tuple[int, bytes]:
    """name_to_handle_at(2) of an open file: handle type and bytes.

    Args:
        fd: the file.
        flags: AT_HANDLE_FID for a handle that only tells files apart, Linux 6.5.

    Raises:
        OSError: ENOTSUP where the filesystem has no handles.
    """
    kind, size, data = ffi.new("int *"), ffi.new("unsigned int *"), ffi.new("unsigned char[128]")
    _checked(lib.sys_file_handle(fd, flags, kind, data, size), "name_to_handle_at")
    return int(kind[0]), bytes(ffi.buffer(data))[: size[0]]


def open_by_handle(mount_fd: int, handle: tuple[int, bytes], flags: int) -> int:
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
    return _checked(
        lib.sys_open_by_handle(mount_fd, kind, data, len(data), flags), "open_by_handle_at"
    )


def fd_of_process(pid: int, number: int) -> int:
    """pidfd_getfd(2), Linux 5.6: a duplicate of an fd of another process; it is the caller's.

    Args:
        pid: the process.
        number: its fd.

    Raises:
        OSError: it has ended or has no such fd, or may not be looked into.
    """
    process = os.pidfd_open(pid)
    try:
        return _checked(lib.sys_pidfd_getfd(process, number), "pidfd_getfd")
    finally:
        os.close(process)


def superblock_dev(fd: int) -> int:
    """The device of an open file's superblock, which on some filesystems is not st_dev.

    Source: fdinfo of an inotify fd, proc_pid_fdinfo(5).
    """
    dev = ffi.new("uint64_t *")
    _checked(lib.sys_superblock_dev(fd, dev), "inotify")
    return int(dev[0])


def fs_uuid(fd: int) -> bytes:
    """FS_IOC_GETFSUUID, Linux 6.9: the filesystem's UUID, empty where there is none."""
    data = ffi.new("unsigned char[16]")
    result = lib.sys_fs_uuid(fd, data)
    return bytes(ffi.buffer(data))[:result] if result > 0 else b""


def has_peer(end: bytes) -> bool:
    """Tell whether a unix socket of this process is connected to one whose name ends so.

    Args:
        end: of the name that the other socket is bound to.

    Raises:
        OSError: the fds of this process cannot be listed.
    """
    return bool(_checked(lib.sys_has_peer(end), "/proc/self/fd"))


def bound_file(pid_fd: int, fd: int) -> int:
    """Open the file that a unix socket of another process is bound to (O_PATH).

    Args:
        pid_fd: the process, as pidfd_open(2) gives it.
        fd: the socket, in that process.

    Raises:
        OSError: it is none, or bound to no file, or the process has ended.
    """
    return _checked(lib.sys_bound_file(pid_fd, fd), "pidfd_getfd or SIOCUNIXFILE")


def shares_files(tid: int, other: int) -> bool:
    """Tell whether two threads have the same fds, working directory and root.

    Args:
        tid: one of them.
        other: the other one.

    Returns:
        False also where the kernel does not tell.

    Source: kcmp(2), KCMP_FILES and KCMP_FS.
    """
    return not any(lib.sys_kcmp(tid, other, what) for what in (_KCMP_FILES, _KCMP_FS))


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
    _checked(result, "open_tree or mount_setattr")


def view_clone(ns_fds: list[int], fd: int, mask: int) -> list[StatMount]:
    """Attach a clone of an anonymous mount in a child's private namespace, and look at it.

    Args:
        ns_fds: mount namespaces; the mount was made in one of them.
        fd: what is to be the root of the clone.
        mask: STATMOUNT_* bits that are wanted.

    Returns:
        What statmount(2) says of the clone, and then of its children, parents first.

    Raises:
        OSError: EINVAL when the mount is cloned in none of them.
    """
    size = 1 << 16
    while True:
        buf = ffi.new("char[]", size)
        result = lib.sys_view_clone(ns_fds, len(ns_fds), fd, mask, buf, size)
        if result != -errno.EOVERFLOW or size > _STATMOUNT_LIMIT:
            break
        size *= 4
    raw, found = bytes(ffi.buffer(buf)), []
    for _ in range(_checked(result, "clone and attach an anonymous mount")):
        length = int.from_bytes(raw[:4], sys.byteorder)
        found.append(StatMount(raw[:length]))
        raw = raw[length:]
    return found


def clone_in_one_of(ns_fds: list[int], fd: int) -> int:
    """As clone_mount, of an anonymous mount, by a child in one of some mount namespaces.

    Args:
        ns_fds: the namespaces; the mount was made in one of them.
        fd: what is to be the root of the clone. What is mounted below is left out.

    Raises:
        OSError: EINVAL when the mount is cloned in none of them.
    """
    result = lib.sys_clone_in_one_of(ns_fds, len(ns_fds), fd)
    return _checked(result, "clone an anonymous mount")


def user_namespace(uid_map: bytes, gid_map: bytes) -> int:
    """Make a user namespace with the given maps, for MOUNT_ATTR_IDMAP.

    Args:
        uid_map: lines as /proc/PID/uid_map takes them, user_namespaces(7).
        gid_map: likewise.

    Returns:
        An fd of it, the caller's; the namespace lives as long as something holds it.
    """
    return _checked(lib.sys_userns(uid_map, gid_map), "user namespace")


class PrivateNamespace:
    """A mount namespace for this process alone, for as long as the with block lasts.

    Mounts of it are seen nowhere else. Their files and clones outlive it.

    Raises:
        OSError: on the way in, the kernel refused it; on the way out, this process is left
            in the wrong namespace and has to end.
    """

    def __enter__(self) -> None:
        self._place = ffi.new("int[3]")
        _checked(lib.sys_enter_private_ns(self._place), "unshare")

    def __exit__(self, *_: object) -> None:
        _checked(lib.sys_leave_private_ns(self._place), "setns")


_KCMP_FILES, _KCMP_FS = 2, 3  # linux/kcmp.h

# linux/mount.h: fsconfig(2)
_FSCONFIG_SET_FLAG, _FSCONFIG_SET_STRING = 0, 1
_FSCONFIG_CMD_CREATE, _FSCONFIG_CMD_RECONFIGURE = 6, 7


def new_mount(
    fs_type: bytes, source: bytes, options: list[bytes], fds: Iterable[tuple[bytes, int]] = ()
) -> int:
    """Mount a filesystem: fsopen(2), fsconfig(2) and fsmount(2), Linux 5.2.

    Args:
        fs_type: its type.
        source: as mount(8) takes it.
        options: of the superblock, each "name" or "name=value".
        fds: options that take an open file.

    Returns:
        A tree fd of the mount, the caller's. It is in no namespace.

    Raises:
        OSError: as mount(2); the text has what the filesystem says.
    """
    fd = _checked(lib.sys_fsopen(fs_type), "fsopen")
    try:
        if source:
            _configure(fd, _FSCONFIG_SET_STRING, b"source", source)
        _set_options(fd, options)
        for name, opened in fds:
            _tell(fd, name, lib.sys_fsconfig_fd(fd, name, opened))
        _configure(fd, _FSCONFIG_CMD_CREATE, ffi.NULL, ffi.NULL)
        return _checked(lib.sys_fsmount(fd, 0), "fsmount")
    finally:
        os.close(fd)


def remount(tree: int, options: list[bytes]) -> None:
    """Change options of a mounted superblock: fspick(2), as mount(8) does with remount.

    Args:
        tree: the root of one of its mounts.
        options: as of new_mount.

    Raises:
        OSError: as mount(2); the text has what the filesystem says.
    """
    fd = _checked(lib.sys_fspick(tree), "fspick")
    try:
        _set_options(fd, options)
        _configure(fd, _FSCONFIG_CMD_RECONFIGURE, ffi.NULL, ffi.NULL)
    finally:
        os.close(fd)


def _set_options(fd: int, options: list[bytes]) -> None:
    for option in options:
        _set_option(fd, option)


def refused_options(fs_type: bytes, options: list[bytes]) -> list[tuple[bytes, OSError]]:
    """Those options that a filesystem does not take; nothing is mounted.

    Args:
        fs_type: its type.
        options: as of new_mount.

    Returns:
        Each with the error.

    Raises:
        OSError: there is no such type.
    """
    refused = []
    fd = _checked(lib.sys_fsopen(fs_type), "fsopen")
    try:
        for option in options:
            try:
                _set_option(fd, option)
            except OSError as error:
                refused.append((option, error))
    finally:
        os.close(fd)
    return refused


def _set_option(fd: int, option: bytes) -> None:
    name, equals, value = option.partition(b"=")
    if equals:
        _configure(fd, _FSCONFIG_SET_STRING, name, value)
    else:
        _configure(fd, _FSCONFIG_SET_FLAG, name, ffi.NULL)


def _configure(fd: int, command: int, key: Any, value: Any) -> None:
    _tell(fd, key, lib.sys_fsconfig(fd, command, key, value))


def _tell(fd: int, key: Any, result: int) -> None:
    """Raise OSError, with what the filesystem says, where fsconfig(2) failed."""
    if result < 0:
        said = [os.strerror(-result)]
        try:
            while message := os.read(fd, 4096):  # "e ext4: ...", one at a time
                said.append(message.decode("ascii", "backslashreplace").strip())
        except OSError:
            pass  # ENODATA: that was all
        what = key.decode("ascii", "backslashreplace") if key else "fsconfig"
        raise OSError(-result, f"{what}: {'; '.join(said)}")


def attach(tree: int, target: int) -> None:
    """move_mount(2): attach a tree on top of an open directory, or file if its root is one."""
    _checked(lib.sys_move_mount(tree, target), "move_mount")


def attach_at_root(tree: int) -> None:
    """Attach a tree on top of all that there is: in a private mount namespace, to look at it."""
    root = os.open("/", O_PATH)
    try:
        attach(tree, root)
    finally:
        os.close(root)


def blkid_probe(fd: int, offset: int = 0) -> tuple[bytes, bytes, bytes]:
    """What libblkid finds in a device or an image file: TYPE, UUID and UUID_SUB.

    Only for CRIU's own process: the library is loaded for it.

    Args:
        fd: open for reading.
        offset: where the filesystem starts.

    Raises:
        OSError: ENODATA when there is no filesystem, or more than one; ELIBACC when there
            is no libblkid.
    """
    values = ffi.new("char[192]")
    _checked(lib.blkid_probe(fd, offset, values), "libblkid")
    raw = bytes(ffi.buffer(values))
    return raw[:64].rstrip(b"\0"), raw[64:128].rstrip(b"\0"), raw[128:].rstrip(b"\0")


def is_directory(path: str | bytes) -> bool:
    """Tell whether a path leads to a directory, and can be followed."""
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except OSError:
        return False


def file_flags(fd: int) -> int:
    """The flags that a file was opened with, and those that were set since; fcntl(2)."""
    return _checked(lib.sys_file_flags(fd), "fcntl")


def is_readable(fd: int) -> bool:
    """Tell whether a file can be read through an fd."""
    flags = file_flags(fd)
    return not flags & os.O_PATH and flags & os.O_ACCMODE != os.O_WRONLY


def zeroed(size: int) -> memoryview:
    """A buffer of zeroes; none of its pages takes memory before it is written to."""
    return memoryview(ffi.buffer(ffi.new("char[]", size)))
