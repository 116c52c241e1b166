# SPDX-License-Identifier: GPL-2.0-only
"""Loop devices, loop(4): what they show, and setting one up again.

Only in CRIU's own process. The numbers are those of linux/loop.h.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import sys

from criu_detached import kernel
from criu_detached.errors import DetachedError, quote, why
from criu_detached.images.records import Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_LOOP_GET_STATUS64 = 0x4C05
_LOOP_CONFIGURE = 0x4C0A  # Linux 5.8
_LOOP_CTL_GET_FREE = 0x4C82

_READ_ONLY, _AUTOCLEAR, _PARTSCAN, _DIRECT_IO = 1, 4, 8, 16
_KNOWN_FLAGS = _READ_ONLY | _AUTOCLEAR | _PARTSCAN | _DIRECT_IO

# struct loop_info64: lo_device, lo_inode, lo_rdevice, lo_offset, lo_sizelimit, four 32-bit
# numbers, the last of them lo_flags, then lo_file_name
_INFO_SIZE = 232
_OFFSET_AT, _SIZE_LIMIT_AT, _FLAGS_AT, _FILE_NAME_AT = 24, 32, 52, 56
# struct loop_config: fd, block_size, the info, 64 bytes reserved
_CONFIG_SIZE = 8 + _INFO_SIZE + 64

_CLASS = b"/sys/class/block/"


def describe_loop(name: bytes) -> Loop | None:
    """Describe the loop device that a block device is, or is a partition of.

    Args:
        name: the device's, in sysfs.

    Raises:
        DetachedError: it could not be set up again.
    """
    partition = attribute(name, b"partition")
    if partition:
        name = os.readlink(_CLASS + name).split(b"/")[-2]
    file = attribute(name, b"loop/backing_file")
    if not file:
        return None
    try:
        info = _status(name)
    except OSError as error:
        raise DetachedError(
            f"its loop device {quote(name)} does not tell its backing file: {why(error)}"
        ) from error
    if _identity(file) != (_number(info, 0), _number(info, 8)):
        raise DetachedError(
            f"the backing file {quote(file)} of its loop device {quote(name)} is not there where"
            " criu runs (is it deleted, or on a filesystem that was unmounted?): a restore could"
            " not set the loop device up again"
        )
    return Loop(
        file=file,
        offset=_number(info, _OFFSET_AT),
        size_limit=_number(info, _SIZE_LIMIT_AT),
        flags=_number(info, _FLAGS_AT, 4) & _KNOWN_FLAGS,
        block_size=int(attribute(name, b"queue/logical_block_size") or 512),
        partition=int(partition or 0),
    )


def attribute(name: bytes, path: bytes) -> bytes:
    """What sysfs says of a block device, less the newline; empty when it says nothing."""
    try:
        with open(_CLASS + name + b"/" + path, "rb") as file:
            return file.read().removesuffix(b"\n")
    except OSError:
        return b""


def _identity(file: bytes) -> tuple[int, int]:
    """Device, as the kernel encodes it (huge_encode_dev), and inode of a path."""
    try:
        fd = os.open(file, kernel.O_PATH)
    except OSError:
        return 0, 0
    try:
        facts = kernel.fstat(fd)
    finally:
        os.close(fd)
    major, minor = os.major(facts.dev), os.minor(facts.dev)
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12, facts.ino


def _number(info: bytearray, offset: int, size: int = 8) -> int:
    return int.from_bytes(info[offset : offset + size], sys.byteorder)


def loops_over(file: bytes) -> Iterator[bytes]:
    """Yield the nodes of the devices over a file, by whichever name, and of their partitions."""
    wanted = _identity(file)
    for name in sorted(os.listdir(_CLASS)):
        if attribute(name, b"loop/backing_file") and _backing(name) == wanted != (0, 0):
            yield b"/dev/" + name
            for part in sorted(os.listdir(_CLASS + name)):
                if attribute(part, b"partition"):
                    yield b"/dev/" + part


def _backing(name: bytes) -> tuple[int, int]:
    """As _identity, of the file behind a loop device."""
    try:
        info = _status(name)
    except OSError:
        return 0, 0
    return _number(info, 0), _number(info, 8)


def _status(name: bytes) -> bytearray:
    info = bytearray(_INFO_SIZE)
    fd = os.open(b"/dev/" + name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fcntl.ioctl(fd, _LOOP_GET_STATUS64, info)
    finally:
        os.close(fd)
    return info


def node_of(name: bytes, loop: Loop) -> bytes:
    """The node of a loop device, or of its partition where the record is of one."""
    if not loop.partition:
        return b"/dev/" + name
    for part in os.listdir(_CLASS + name):
        if attribute(part, b"partition") == b"%d" % loop.partition:
            return b"/dev/" + part
    return b""


def open_file(loop: Loop) -> int:
    """Open the backing file; raises OSError."""
    if loop.flags & ~_KNOWN_FLAGS or not loop.file.startswith(b"/") or b"\0" in loop.file:
        raise OSError(errno.EINVAL, "the record is invalid")
    if stat.S_IFMT(os.stat(loop.file).st_mode) not in (stat.S_IFREG, stat.S_IFBLK):
        raise OSError(errno.EINVAL, "it is no file that a loop device can have")
    mode = os.O_RDONLY if loop.flags & _READ_ONLY else os.O_RDWR
    return os.open(loop.file, mode | os.O_CLOEXEC | os.O_NONBLOCK)


def attach(loop: Loop, file: int) -> tuple[int, bytes]:
    """Set a loop device up over an open file. It is gone when its last user closes it.

    Args:
        loop: its record.
        file: fd of the backing file; it stays the caller's.

    Returns:
        An fd of the device for reading, the caller's, and the device's name.

    Raises:
        DetachedError: the kernel refuses it.
    """
    config = bytearray(_CONFIG_SIZE)
    _put(config, 0, file, 4)
    _put(config, 4, loop.block_size, 4)
    _put(config, 8 + _OFFSET_AT, loop.offset, 8)
    _put(config, 8 + _SIZE_LIMIT_AT, loop.size_limit, 8)
    scan = _PARTSCAN if loop.partition else 0
    _put(config, 8 + _FLAGS_AT, loop.flags | _AUTOCLEAR | scan, 4)
    config[8 + _FILE_NAME_AT : 8 + _FILE_NAME_AT + 63] = loop.file[:63].ljust(63, b"\0")
    try:
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
        try:
            return _configure(control, config, loop)
        finally:
            os.close(control)
    except OSError as error:
        raise DetachedError(
            f"can't set up a loop device over {quote(loop.file)}: {why(error)}"
        ) from error


def _configure(control: int, config: bytearray, loop: Loop) -> tuple[int, bytes]:
    mode = os.O_RDONLY if loop.flags & _READ_ONLY else os.O_RDWR
    while True:
        name = b"loop%d" % fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
        writer = os.open(b"/dev/" + name, mode | os.O_CLOEXEC)
        try:
            fcntl.ioctl(writer, _LOOP_CONFIGURE, config)
            # One that writes could keep the filesystem from being mounted.
            return os.open(b"/dev/" + name, os.O_RDONLY | os.O_CLOEXEC), name
        except OSError as error:
            if error.errno != errno.EBUSY:  # someone else was faster
                raise
        finally:
            os.close(writer)


def _put(config: bytearray, offset: int, number: int, size: int) -> None:
    config[offset : offset + size] = number.to_bytes(size, sys.byteorder)
