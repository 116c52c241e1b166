# SPDX-License-Identifier: GPL-2.0-only
"""Block devices that filesystems lie on: what tells which filesystem one carries.

A device's name says little, for devices are numbered as they are found. What libblkid, the library
of mount(8) and udev, reads from the device does. Only in CRIU's own process.
"""

from __future__ import annotations

import errno
import os
from binascii import crc32

from criu_detached.errors import DetachedError, quote, why
from criu_detached.filesystems.types import NEVER_WRITTEN, by_name
from criu_detached.images.records import BlockDevice
from criu_detached.kernel import blkid, new_mounts
from criu_detached.kernel.fds import Fd

# Bytes of what is written once, when it is made: few such types have a UUID.
_CHECKED = 64 << 10


def needs_device(fs_type: bytes) -> bool:
    """Tell whether a type of filesystem lies on a block device, and on nothing else."""
    if fs_type == b"fuseblk" or not fs_type.replace(b"_", b"").replace(b"-", b"").isalnum():
        return False
    try:
        new_mounts.refused_options(fs_type, [])  # its module is loaded with it
    except OSError:
        return False
    with open("/proc/filesystems", "rb") as file:
        return b"\t" + fs_type in file.read().split(b"\n")


def open_device(path: bytes, flags: int = 0) -> Fd:
    """Open a block device for reading; no drive closes its tray for it. Raises OSError."""
    return Fd.open(path, os.O_RDONLY | os.O_NONBLOCK | flags)


def is_claimed(path: bytes) -> bool:
    """Tell whether a mounted filesystem, or something else, has a device for itself (open(2)).

    Args:
        path: its node.

    Raises:
        DetachedError: it cannot be opened.
    """
    try:
        open_device(path, os.O_EXCL).close()
    except OSError as error:
        if error.errno == errno.EBUSY:
            return True
        raise DetachedError(f"{quote(path)} cannot be opened: {error}") from error
    return False


def identify(fd: int, path: bytes, offset: int = 0) -> BlockDevice:
    """Describe what lies on a device, or in an image file.

    Args:
        fd: it, open for reading.
        path: its path, for the record.
        offset: where in it the filesystem starts.

    Raises:
        DetachedError: nothing lies there, or nobody can tell.
    """
    try:
        fs_type, uuid, uuid_sub = blkid.blkid_probe(fd, offset)
        never_written = by_name(fs_type).has(NEVER_WRITTEN)  # libblkid has the same names
        checksum = crc32(os.pread(fd, _CHECKED, offset)) if never_written else 0
        size = os.lseek(fd, 0, os.SEEK_END)
    except OSError as error:
        raise DetachedError(f"{quote(path)}: {_why_unknown(error)}") from error
    return BlockDevice(
        path=path, size=size, type=fs_type, uuid=uuid, uuid_sub=uuid_sub, checksum=checksum
    )


def _why_unknown(error: OSError) -> str:
    if error.errno == errno.ELIBACC:
        return "libblkid.so.1 is not installed: it tells one filesystem from another"
    if error.errno == errno.ENODATA:
        return "it carries no filesystem"
    return why(error)


def has_uuid(device: BlockDevice) -> bool:
    """Tell a UUID from the shorter serials that other filesystems have in its place."""
    digits = device.uuid.replace(b"-", b"")
    return len(digits) == 32 and not digits.strip(b"0123456789abcdefABCDEF")


def is_same(wanted: BlockDevice, found: BlockDevice) -> bool:
    """Tell whether a device carries a filesystem. One with a UUID may have grown."""
    identity = (wanted.type, wanted.uuid, wanted.uuid_sub, wanted.checksum)
    return identity == (found.type, found.uuid, found.uuid_sub, found.checksum) and (
        has_uuid(wanted) or wanted.size == found.size
    )


def describe(device: BlockDevice) -> str:
    """Name what lies on a device, for a message."""
    known = [quote(device.uuid)] if device.uuid else []
    if not has_uuid(device):
        known.append(f"{device.size} bytes")
    return f"{quote(device.type)} ({', '.join(known)})"
