# SPDX-License-Identifier: GPL-2.0-only
"""Copies data between open files, and finds what of a file is data and what is a hole.

Data go through one buffer, so memory stays bounded, and are not copied at all where the filesystem
can let two files share them.
"""

from __future__ import annotations

import errno
import os

from criu_detached import kernel
from criu_detached.filesystems.types import SHARES_DATA, by_magic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# One buffer for all: reading and writing through it takes half the time of copy_file_range(2) and
# sendfile(2), which go page by page, unless they need not copy. It fits into a processor's cache:
# with a mebibyte the dump of a large file took a third more.
BUFFER = kernel.zeroed(1 << 18)
_PIECE = 1 << 30  # bytes that one copy_file_range(2) is asked to copy
# What copy_file_range(2) answers where it cannot copy between two files.
_CANNOT = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}


def copy_data(source: int, source_at: int, target: int, target_at: int, length: int) -> int:
    """Copy bytes from file to file, or let the two share them where they can.

    Args:
        source: open for reading; its position does not move.
        source_at: where to begin.
        target: open for writing, without O_APPEND.
        target_at: where to begin.
        length: how many bytes.

    Returns:
        How many there were.

    Raises:
        OSError: as read(2) and write(2).
    """
    copied = _share(source, source_at, target, target_at, length)
    while copied < length:
        piece = BUFFER[: length - copied]
        done = os.preadv(source, [piece], source_at + copied)
        if not done:
            break
        piece = piece[:done]
        while piece:
            written = os.pwrite(target, piece, target_at + copied)
            copied += written
            piece = piece[written:]
    return copied


def _share(source: int, source_at: int, target: int, target_at: int, length: int) -> int:
    """Let a file share the data of another, as many of them as the kernel can.

    It can where both begin at the start of a block. In the data file that is so by chance alone;
    what is not shared, the kernel copies.
    """
    if length <= len(BUFFER) or not _may_share(source, target):
        return 0
    copied = 0
    try:
        while copied < length:
            count = min(length - copied, _PIECE)
            done = os.copy_file_range(source, target, count, source_at + copied, target_at + copied)
            if not done:
                break
            copied += done
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
    return copied


def _may_share(source: int, target: int) -> bool:
    magic = kernel.fstatfs(source).magic
    return by_magic(magic).has(SHARES_DATA) and magic == kernel.fstatfs(target).magic


def has_data(fd: int, size: int) -> bool:
    """Tell whether a file has anything but holes.

    st_blocks does not: many servers (FUSE) leave it at zero.

    Args:
        fd: the file, open for reading.
        size: of it, in bytes.
    """
    return next(data_of(fd, size), None) is not None


def data_of(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield offset and length of each piece of a file that is no hole."""
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return  # a hole to the end
        at = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        if start < at:
            yield start, at - start
