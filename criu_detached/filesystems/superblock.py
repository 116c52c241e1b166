# SPDX-License-Identifier: GPL-2.0-only
"""Which filesystem instance is this? Device numbers alone do not say: they are reused."""

from __future__ import annotations

import os
import stat

from criu_detached import kernel
from criu_detached.filesystems.types import FilesystemType, by_magic
from criu_detached.images.records import Superblock
from criu_detached.kernel.devnum import huge_encode_dev


def boot_id() -> bytes:
    """Return the running system's boot id (proc_sys_kernel(5))."""
    fd = os.open("/proc/sys/kernel/random/boot_id", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 64).strip()
    finally:
        os.close(fd)


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
        fd: an O_PATH fd will do.
        fs_type: its filesystem's name, as mountinfo has it.
    """
    fs = kernel.fstatfs(fd)
    facts = kernel.fstat(fd)
    uuid = _uuid(fd) if stat.S_ISDIR(facts.mode) else b""
    return Superblock(fs_type=fs_type, magic=fs.magic, dev=facts.dev, fsid=fs.fsid, uuid=uuid)


def _uuid(directory: int) -> bytes:
    """The ioctl wants more than an O_PATH fd."""
    try:
        fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return b""
    try:
        return kernel.fs_uuid(fd)
    finally:
        os.close(fd)


def is_same(one: Superblock, other: Superblock, same_boot: bool) -> bool:
    """Tell whether two descriptions are of one superblock.

    Args:
        one: as recorded.
        other: as found.
        same_boot: device numbers mean something, for the system was not booted between.
    """
    if one.magic != other.magic:
        return False
    if one.uuid and other.uuid and one.uuid != other.uuid:
        return False
    if one.fsid != other.fsid:
        # tmpfs and most others draw f_fsid from a UUID; what has neither uses the device
        return bool(one.uuid) and one.uuid == other.uuid and not same_boot
    if same_boot and one.dev == other.dev:
        return True
    return bool(one.uuid) or (one.fsid != 0 and not _fsid_is_device(one))


def _fsid_is_device(superblock: Superblock) -> bool:
    """Tell whether f_fsid is huge_encode_dev(s_dev) (simple_statfs, xfs_fs_statfs)."""
    return superblock.fsid == huge_encode_dev(superblock.dev)
