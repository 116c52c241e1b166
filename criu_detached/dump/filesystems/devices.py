# SPDX-License-Identifier: GPL-2.0-only
"""The block devices that a living superblock lies on, found and described at dump."""

from __future__ import annotations

import os
import stat

from criu_detached import kernel
from criu_detached.errors import DetachedError, quote, why
from criu_detached.filesystems import devices, loops, sysfs
from criu_detached.filesystems.types import BTRFS, EXT, by_magic
from criu_detached.kernel.devnum import format_dev

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from criu_detached.images.records import BlockDevice
    from criu_detached.kernel import StatFs
    from criu_detached.kernel.fds import Fd

_BTRFS = "/sys/fs/btrfs"


def devices_under(dev: int, fs: StatFs) -> Iterator[list[int]]:
    """Yield the numbers of the block devices that a living superblock may lie on.

    Args:
        dev: its device number, or that of a file on it.
        fs: what statfs(2) says of the file.
    """
    if os.major(dev):  # else the number is one that the kernel made up
        yield [dev]
    elif by_magic(fs.magic) is BTRFS and kernel.is_directory(_BTRFS):
        for uuid in os.listdir(_BTRFS):
            if len(uuid) == 36 and _is_btrfs(bytes.fromhex(uuid.replace("-", "")), fs.fsid):
                names = sorted(os.listdir(f"{_BTRFS}/{uuid}/devices"))
                yield [sysfs.number_of(os.fsencode(name)) for name in names]


def _is_btrfs(uuid: bytes, fsid: int) -> bool:
    """Compare with the half of f_fsid that has no subvolume in it (btrfs_statfs)."""
    folded = int.from_bytes(uuid[:4], "big") ^ int.from_bytes(uuid[8:12], "big")
    return folded == fsid & 0xFFFFFFFF


def _is_ext(uuid: bytes, fsid: int) -> bool:
    """Compare with f_fsid (ext4_statfs, uuid_to_fsid)."""
    return int.from_bytes(uuid[:8], "little") ^ int.from_bytes(uuid[8:], "little") == fsid


def describe_device(dev: int) -> BlockDevice:
    """Describe a block device that a living superblock lies on.

    Args:
        dev: its number.

    Raises:
        DetachedError: it is gone or another one, or could not be known again.
    """
    path = sysfs.node_with(dev)
    if not path:
        raise DetachedError(
            f"its block device {format_dev(dev)} is gone: a restore could not find the"
            " filesystem again"
        )
    with _open_number(path, dev) as fd:
        _refuse_free(path)
        record = devices.identify(fd, path)
    record.loop = loops.describe_loop(sysfs.name_of(dev))
    return record


def _open_number(path: bytes, dev: int) -> Fd:
    try:
        fd = devices.open_device(path)
    except OSError as error:
        raise DetachedError(
            f"its block device {quote(path)} cannot be opened: {why(error)}"
        ) from error
    found = kernel.fstat(fd)
    if stat.S_ISBLK(found.mode) and found.rdev == dev:
        return fd
    fd.close()
    raise DetachedError(f"{quote(path)} is not block device {format_dev(dev)}")


def _refuse_free(path: bytes) -> None:
    """A device that nothing claims carries no living superblock: mounting it would write to it."""
    if not devices.is_claimed(path):
        raise DetachedError(
            f"its block device was replaced: {quote(path)} has the number now, and is in no use"
        )


def check_living(fd: int, fs: StatFs, device: BlockDevice) -> None:
    """Compare what the kernel says of a living superblock with what lies on its device.

    Args:
        fd: a file on it.
        fs: what statfs(2) says of that.
        device: as described.

    Raises:
        DetachedError: they are two.
    """
    if not devices.has_uuid(device):
        return
    uuid = bytes.fromhex(device.uuid.replace(b"-", b"").decode())
    living = kernel.fs_uuid(fd)
    other = len(living) == 16 and living != uuid
    if other or (by_magic(fs.magic) is EXT and not _is_ext(uuid, fs.fsid)):
        raise DetachedError(
            f"its block device {quote(device.path)} carries another filesystem,"
            f" {devices.describe(device)}"
        )
