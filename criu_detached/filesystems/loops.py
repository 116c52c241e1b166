# SPDX-License-Identifier: GPL-2.0-only
"""Loop devices that filesystems lie on: describing one, and setting it up again.

Only in CRIU's own process.
"""

from __future__ import annotations

import errno
import os
import stat

from criu_detached import kernel
from criu_detached.errors import DetachedError, quote, why
from criu_detached.filesystems import sysfs
from criu_detached.images.records import Loop
from criu_detached.kernel.devnum import huge_decode_dev
from criu_detached.kernel.fds import Fd
from criu_detached.kernel.loop import (
    LO_FLAGS_AUTOCLEAR,
    LO_FLAGS_DIRECT_IO,
    LO_FLAGS_PARTSCAN,
    LO_FLAGS_READ_ONLY,
    free_loop,
    loop_configure,
    loop_status,
    new_loop_config,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from criu_detached._kernel import LoopConfig, LoopInfo64

_KNOWN_FLAGS = LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR | LO_FLAGS_PARTSCAN | LO_FLAGS_DIRECT_IO


def describe_loop(name: bytes) -> Loop | None:
    """Describe the loop device that a block device is, or is a partition of.

    Args:
        name: the device's, in sysfs.

    Raises:
        DetachedError: it could not be set up again.
    """
    partition = sysfs.attribute(name, b"partition")
    if partition:
        name = sysfs.disk_of(name)
    file = _backing_file(name)
    if not file:
        return None
    try:
        info = _status(name)
    except OSError as error:
        raise DetachedError(
            f"its loop device {quote(name)} does not tell its backing file: {why(error)}"
        ) from error
    if _identity(file) != _backing(info):
        raise DetachedError(
            f"the backing file {quote(file)} of its loop device {quote(name)} is not there where"
            " criu runs (is it deleted, or on a filesystem that was unmounted?): a restore could"
            " not set the loop device up again"
        )
    return Loop(
        file=file,
        offset=info.lo_offset,
        size_limit=info.lo_sizelimit,
        flags=info.lo_flags & _KNOWN_FLAGS,
        block_size=int(sysfs.attribute(name, b"queue/logical_block_size") or 512),
        partition=int(partition or 0),
    )


def _backing_file(name: bytes) -> bytes:
    """The path of the file behind a loop device; empty for every other device."""
    return sysfs.attribute(name, b"loop/backing_file")


def _identity(file: bytes) -> tuple[int, int] | None:
    """Device and inode of a path; None where nothing is there."""
    try:
        with Fd.open(file, kernel.O_PATH) as fd:
            found = kernel.fstat(fd)
    except OSError:
        return None
    return found.dev, found.ino


def _backing(info: LoopInfo64) -> tuple[int, int]:
    """Device and inode of the file behind a loop device."""
    return huge_decode_dev(info.lo_device), info.lo_inode


def loops_over(file: bytes) -> Iterator[bytes]:
    """Yield the nodes of the devices over a file, by whichever name, and of their partitions."""
    wanted = _identity(file)
    for name in sysfs.block_devices():
        if wanted is not None and _is_over(name, wanted):
            yield sysfs.node_of(name)
            yield from map(sysfs.node_of, sysfs.partitions_of(name))


def _is_over(name: bytes, file: tuple[int, int]) -> bool:
    """Tell whether a block device is a loop device over a file, given by device and inode."""
    if not _backing_file(name):
        return False
    try:
        return _backing(_status(name)) == file
    except OSError:
        return False


def _status(name: bytes) -> LoopInfo64:
    with Fd.open(sysfs.node_of(name), os.O_RDONLY | os.O_NONBLOCK) as device:
        return loop_status(device)


def node_of(name: bytes, loop: Loop) -> bytes:
    """Return the node of a loop device, or of its partition where the record is of one."""
    if not loop.partition:
        return sysfs.node_of(name)
    for part in sysfs.partitions_of(name):
        if sysfs.attribute(part, b"partition") == b"%d" % loop.partition:
            return sysfs.node_of(part)
    return b""


def open_file(loop: Loop) -> Fd:
    """Open the backing file; raises OSError."""
    if loop.flags & ~_KNOWN_FLAGS or not loop.file.startswith(b"/") or b"\0" in loop.file:
        raise OSError(errno.EINVAL, "the record is invalid")
    if stat.S_IFMT(os.stat(loop.file).st_mode) not in (stat.S_IFREG, stat.S_IFBLK):
        raise OSError(errno.EINVAL, "it is no file that a loop device can have")
    return Fd.open(loop.file, _access(loop) | os.O_NONBLOCK)


def _access(loop: Loop) -> int:
    """How the backing file and the device are opened: for writing only if that is needed."""
    return os.O_RDONLY if loop.flags & LO_FLAGS_READ_ONLY else os.O_RDWR


def attach(loop: Loop, file: int) -> tuple[Fd, bytes]:
    """Set a loop device up over an open file. It is gone when its last user closes it.

    Args:
        loop: its record.
        file: fd of the backing file; it stays the caller's.

    Returns:
        An fd of the device for reading, the caller's, and the device's name.

    Raises:
        DetachedError: the kernel refuses it.
    """
    try:
        with Fd.open("/dev/loop-control", os.O_RDWR) as control:
            return _configure_free_one(control, _config_of(loop, file), _access(loop))
    except OSError as error:
        raise DetachedError(
            f"can't set up a loop device over {quote(loop.file)}: {why(error)}"
        ) from error


def _config_of(loop: Loop, file: int) -> LoopConfig:
    config = new_loop_config()
    config.fd = file
    config.block_size = loop.block_size
    config.info.lo_offset = loop.offset
    config.info.lo_sizelimit = loop.size_limit
    scan = LO_FLAGS_PARTSCAN if loop.partition else 0
    config.info.lo_flags = loop.flags | LO_FLAGS_AUTOCLEAR | scan
    config.info.lo_file_name = loop.file[:63]
    return config


def _configure_free_one(control: int, config: LoopConfig, access: int) -> tuple[Fd, bytes]:
    """Configure the first loop device that has no file and that nobody else is faster to take."""
    while True:
        name = b"loop%d" % free_loop(control)
        try:
            with Fd.open(b"/dev/" + name, access) as device:
                loop_configure(device, config)
                # An fd for writing could keep the filesystem from being mounted.
                return Fd.open(b"/dev/" + name, os.O_RDONLY), name
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
