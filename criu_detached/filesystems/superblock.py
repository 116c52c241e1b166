# SPDX-License-Identifier: GPL-2.0-only
"""The identity of a superblock: its description, and whether two descriptions are of one.

Device numbers alone do not say: they are reused.
"""

from __future__ import annotations

import os
import stat

from criu_detached import kernel
from criu_detached.filesystems.types import FilesystemType, by_magic
from criu_detached.images.records import Superblock
from criu_detached.kernel.devnum import huge_encode_dev
from criu_detached.kernel.fds import Fd


def boot_id() -> bytes:
    """Return the running system's boot id (proc_sys_kernel(5))."""
    with Fd.open("/proc/sys/kernel/random/boot_id", os.O_RDONLY) as fd:
        return os.read(fd, 64).strip()


def type_of(fd: int) -> FilesystemType:
    """Look up the filesystem type of an open file.

    Args:
        fd: the file, O_PATH will do.

    Raises:
        OSError: its filesystem does not answer.
    """
    return by_magic(kernel.fstatfs(fd).magic)


def superblock_of(fd: int, fs_type: bytes) -> Superblock:
    """Describe the superblock of an open file or directory.

    Args:
        fd: the file, O_PATH will do.
        fs_type: the type's name, as mountinfo has it.

    Raises:
        OSError: its filesystem does not answer.
    """
    fs = kernel.fstatfs(fd)
    facts = kernel.fstat(fd)
    uuid = _uuid(fd) if stat.S_ISDIR(facts.mode) else b""
    return Superblock(fs_type=fs_type, magic=fs.magic, dev=facts.dev, fsid=fs.fsid, uuid=uuid)


def _uuid(directory: int) -> bytes:
    """Return the UUID of a filesystem; empty: it tells none.

    The ioctl wants more than an O_PATH fd.
    """
    try:
        fd = Fd.open(b".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=directory)
    except OSError:
        return b""
    with fd:
        return kernel.fs_uuid(fd)


def is_same(one: Superblock, other: Superblock, same_boot: bool) -> bool:
    """Tell whether two descriptions are of one superblock.

    Args:
        one: as recorded.
        other: as found.
        same_boot: the system was not booted between, so device numbers mean something.
    """
    if one.magic != other.magic:
        return False
    if one.uuid and other.uuid and one.uuid != other.uuid:
        return False
    if one.fsid != other.fsid:
        # Most types draw f_fsid from a UUID, tmpfs among them; some from the device number.
        return bool(one.uuid) and one.uuid == other.uuid and not same_boot
    if same_boot and one.dev == other.dev:
        return True
    return bool(one.uuid) or (one.fsid != 0 and not _fsid_is_device(one))


def _fsid_is_device(superblock: Superblock) -> bool:
    """Tell whether f_fsid is huge_encode_dev(s_dev) (simple_statfs, xfs_fs_statfs)."""
    return superblock.fsid == huge_encode_dev(superblock.dev)
