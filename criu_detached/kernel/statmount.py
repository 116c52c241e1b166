# SPDX-License-Identifier: GPL-2.0-only
"""What statmount(2) and listmount(2) tell of mounts."""

from __future__ import annotations

import errno
import os

from criu_detached._kernel import ffi, lib
from criu_detached.kernel.calls import checked
from criu_detached.kernel.fds import Fd
from criu_detached.kernel.files import O_PATH
from criu_detached.kernel.mounts import mnt_id_unique

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from criu_detached import _kernel

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
_ID_MAPS = STATMOUNT_MNT_BASIC | STATMOUNT_MNT_UIDMAP | STATMOUNT_MNT_GIDMAP

_SB_RDONLY = 1  # linux/fs.h
_FIXED = ffi.sizeof("struct uapi_statmount")  # strings follow

# After the root of a mount whose root is deleted (dentry_path, fs/d_path.c).
_ROOT_DELETED = b"//deleted"


def _struct_at(raw: Any) -> _kernel.StatMount:
    """Return the structure that a buffer begins with; the structure keeps the buffer alive."""
    found: _kernel.StatMount = ffi.from_buffer("struct uapi_statmount *", raw)
    return found


class StatMount:
    """statmount(2)'s answer: struct statmount of linux/mount.h with its strings."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        found = _struct_at(raw)
        self._found = found
        self.mask = found.mask
        self.sb_dev = os.makedev(found.sb_dev_major, found.sb_dev_minor)
        self.sb_magic = found.sb_magic
        self.sb_flags = found.sb_flags
        self.mnt_id = found.mnt_id
        self.mnt_attr = found.mnt_attr
        self.mnt_propagation = found.mnt_propagation
        # Root of the mount within its filesystem; ask for STATMOUNT_MNT_ROOT.
        self.mnt_root = self._string(found.mnt_root)

    def _string(self, offset: int) -> bytes:
        """Return the string at an offset behind the structure."""
        return self._strings(offset, 1)[0]

    def _strings(self, offset: int, count: int) -> list[bytes]:
        """Return several strings that start there, one after another."""
        return self._raw[_FIXED + offset :].split(b"\0", count)[:count]

    @property
    def read_only(self) -> bool:
        """Whether the superblock is, not the mount; ask for STATMOUNT_SB_BASIC."""
        return bool(self.sb_flags & _SB_RDONLY)

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
        return self._string(self._found.fs_type)

    @property
    def mnt_opts(self) -> list[bytes]:
        """Options of the superblock, escaped as in mountinfo; ask for STATMOUNT_MNT_OPTS."""
        return [option for option in self._string(self._found.mnt_opts).split(b",") if option]

    @property
    def mnt_point(self) -> bytes:
        """Where it is attached; ask for STATMOUNT_MNT_POINT."""
        return self._string(self._found.mnt_point)

    @property
    def sb_source(self) -> bytes:
        """What it was mounted from; ask for STATMOUNT_SB_SOURCE."""
        return self._string(self._found.sb_source)

    @property
    def opt_array(self) -> list[bytes]:
        """The filesystem's own options, without any escapes; ask for STATMOUNT_OPT_ARRAY."""
        return self._strings(self._found.opt_array, self._found.opt_num)

    @property
    def uid_map(self) -> list[bytes]:
        """Id-map lines, "inside outside count"; ask for STATMOUNT_MNT_UIDMAP (Linux 6.15)."""
        return self._strings(self._found.mnt_uidmap, self._found.mnt_uidmap_num)

    @property
    def gid_map(self) -> list[bytes]:
        """As uid_map; ask for STATMOUNT_MNT_GIDMAP (Linux 6.15)."""
        return self._strings(self._found.mnt_gidmap, self._found.mnt_gidmap_num)


_LIMIT = 1 << 20  # bytes of an answer


def ask(call: Callable[[Any, int], int], what: str) -> tuple[int, bytes]:
    """Give a call larger and larger buffers until its answer fits.

    Args:
        call: it takes a buffer and its size, and gives -EOVERFLOW where that is too small.
        what: its name, for the message.

    Returns:
        What it gave, and the buffer.

    Raises:
        OSError: the kernel refuses it.
    """
    size = 4096
    while True:
        buf = ffi.new("char[]", size)
        result = call(buf, size)
        if result != -errno.EOVERFLOW or size > _LIMIT:
            return checked(result, what), bytes(ffi.buffer(buf))
        size *= 4


def by_fd(fd: int, mask: int) -> StatMount:
    """Return what statmount(2) says of the mount of a file: STATMOUNT_BY_FD, Linux 7.0.

    Args:
        fd: any file on the mount.
        mask: STATMOUNT_* bits that are wanted; look at the answer's mask.

    Raises:
        OSError: EINVAL before 7.0 and for kernel-internal mounts, ENOENT for anonymous ones.
    """
    _, raw = ask(lambda buf, size: lib.sys_statmount_by_fd(fd, mask, buf, size), "statmount")
    return StatMount(raw)


def has_by_fd() -> bool:
    """Tell whether the kernel has STATMOUNT_BY_FD, by asking it for the root directory."""
    with Fd.open("/", O_PATH) as root:
        try:
            by_fd(root, STATMOUNT_MNT_BASIC)
        except OSError:
            return False
    return True


def mount_in_ns(mnt_id: int, ns_id: int) -> bool:
    """Tell whether a mount is attached in a mount namespace.

    Args:
        mnt_id: its unique id.
        ns_id: the namespace's id.

    Raises:
        OSError: the kernel does not tell.

    Source: statmount(2), its mnt_ns_id from Linux 6.11; ENOENT says no.
    """
    buf = ffi.new("char[]", _FIXED)
    result = lib.sys_statmount_in_ns(mnt_id, ns_id, STATMOUNT_MNT_BASIC, buf, _FIXED)
    if result == -errno.ENOENT:
        return False
    checked(result, "statmount")
    return True


def superblocks_in_ns(ns_id: int) -> set[int]:
    """Return the devices of the superblocks that a mount namespace shows.

    Args:
        ns_id: its id.

    Raises:
        OSError: the kernel does not tell.

    Source: listmount(2) and statmount(2), their mnt_ns_id from Linux 6.11.
    """
    return {mount.sb_dev for mount in mounts_in_ns(ns_id, STATMOUNT_SB_BASIC)}


def mounts_in_ns(ns_id: int, mask: int) -> Iterator[StatMount]:
    """Yield what statmount(2) says of each mount of a mount namespace.

    Args:
        ns_id: of the namespace.
        mask: STATMOUNT_* bits that are wanted.

    Raises:
        OSError: the kernel does not tell.

    Source: as superblocks_in_ns.
    """
    ids = ffi.new("uint64_t[512]")
    size = _FIXED if mask == STATMOUNT_SB_BASIC else _LIMIT
    buf = ffi.new("char[]", size)
    last = 0
    while count := checked(lib.sys_listmount(ns_id, last, ids, 512), "listmount"):
        for index in range(count):
            result = lib.sys_statmount_in_ns(ids[index], ns_id, mask, buf, size)
            if result != -errno.ENOENT:  # gone by now
                checked(result, "statmount")
                yield StatMount(_first(ffi.buffer(buf)))
        last = ids[count - 1]


def id_maps(fd: int) -> tuple[list[bytes], list[bytes]]:
    """Return the uid and the gid map of the mount of an open file, empty where it has none.

    Args:
        fd: the file.

    Raises:
        OSError: EINVAL before Linux 7.0.
    """
    found = by_fd(fd, _ID_MAPS)
    return found.uid_map, found.gid_map


def attached_id_maps(fd: int, ns_id: int = 0) -> tuple[list[bytes], list[bytes]]:
    """Return the id-maps of an attached mount, as id_maps() but from Linux 6.15 on.

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
    mnt_id = mnt_id_unique(fd)
    _, raw = ask(
        lambda buf, size: lib.sys_statmount_in_ns(mnt_id, ns_id, _ID_MAPS, buf, size), "statmount"
    )
    found = StatMount(raw)
    return found.uid_map, found.gid_map


def answers(raw: bytes, count: int) -> list[StatMount]:
    """Read several answers that are in a buffer one after another."""
    found = []
    for _ in range(count):
        one = _first(raw)
        found.append(StatMount(one))
        raw = raw[len(one) :]
    return found


def _first(raw: Any) -> bytes:
    """Return the first answer in a buffer, strings and all."""
    return bytes(raw[: max(_struct_at(raw).size, _FIXED)])
