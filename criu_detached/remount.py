# SPDX-License-Identifier: GPL-2.0-only
"""Filesystems that lie elsewhere than in memory: they are mounted again.

At dump this is tried in a mount namespace of this process alone. The kernel gives the
superblock that is there already (sget_fc, fs/super.c), so the trial changes nothing, and
it shows the options and the files.
"""

from __future__ import annotations

import os

from criu_detached import kernel, mountinfo
from criu_detached.errors import DetachedError, quote
from criu_detached.records import Filesystem
from criu_detached.sources import Source
from criu_detached.superblock import superblock_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# What mountinfo shows among a superblock's options, and mount(2) does not take.
_SHOWN_ALONE = {b"seclabel"}

# linux/magic.h: types of filesystem, which kernels before 7.0 do not name
_TYPES = {
    0xEF53: [b"ext4", b"ext3", b"ext2"],
    0x58465342: [b"xfs"],
}


def remounted(fd: int, dev: int, fs_type: bytes | None, number: int) -> Iterator[Source]:
    """Yield, opened, the trial mount of a file's filesystem, if there can be one.

    Args:
        fd: the file.
        dev: device of its superblock, or of the file.
        fs_type: its filesystem's name, where known.
        number: for the record.
    """
    device = _block_device(dev)
    if device is None:
        return
    fs = kernel.fstatfs(fd)
    read_only = [b"ro"] if fs.flags & os.ST_RDONLY else []
    for name in [fs_type] if fs_type else _TYPES.get(fs.magic, []):
        try:
            source = _try(name, device, read_only, number)
        except OSError:
            continue
        yield source


def _try(fs_type: bytes, device: bytes, options: list[bytes], number: int) -> Source:
    with kernel.PrivateNamespace():
        tree = kernel.new_mount(fs_type, device, options)
        root = os.open("/", kernel.O_PATH)
        try:
            kernel.attach(tree, root)
        finally:
            os.close(root)
        mnt_id = kernel.fstat(tree).mnt_id
        (info,) = (info for info in mountinfo.read_mountinfo() if info.mnt_id == mnt_id)
    shown = [option for option in info.super_options if option not in _SHOWN_ALONE]
    filesystem = Filesystem(
        id=number, superblock=superblock_of(tree, fs_type), source=device, options=shown
    )
    return Source(info, False, tree, filesystem=filesystem)


def _block_device(dev: int) -> bytes | None:
    """Path of a block device's node."""
    try:
        with open(f"/sys/dev/block/{os.major(dev)}:{os.minor(dev)}/uevent", "rb") as uevent:
            lines = uevent.read().split(b"\n")
    except OSError:
        return None
    for line in lines:
        if line.startswith(b"DEVNAME="):
            return b"/dev/" + line[8:]
    return None


def mount_again(filesystem: Filesystem) -> int:
    """Mount a filesystem as it was.

    Args:
        filesystem: its record.

    Returns:
        A tree fd of the mount, the caller's.

    Raises:
        DetachedError: it cannot be mounted.
    """
    assert filesystem.superblock is not None
    try:
        return kernel.new_mount(
            filesystem.superblock.fs_type, filesystem.source, filesystem.options
        )
    except OSError as error:
        raise DetachedError(
            f"can't mount {quote(filesystem.source)} again as"
            f" {quote(filesystem.superblock.fs_type)}: {error}"
        ) from error
