# SPDX-License-Identifier: GPL-2.0-only
"""The data file ``criu-detached-data.img``: what is in the files that are recreated.

Layout (docs/image-format.md): two magic numbers, then the content of one file after another. A
content is a list of extents, each an offset and a length of 64 bits (little-endian) and that many
bytes; what no extent covers is a hole.
"""

from __future__ import annotations

import errno
import os
import stat

from criu_detached.errors import DetachedError, why
from criu_detached.images import copying
from criu_detached.images.recordfile import magics

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "criu-detached-data.img"

DATA_MAGIC = 0x44544444  # "DDTD"

_MAGICS = magics(DATA_MAGIC)
_EXTENT = 16  # bytes of an extent's offset and length


class DataFileWriter:
    """Appends the data of open files to the data file, and creates that for the first one."""

    def __init__(self, image_dir: int) -> None:
        """Take the fd of the image directory; it stays the caller's."""
        self._image_dir = image_dir
        self._fd = -1
        self._end = 0

    def add(self, fd: int, size: int) -> tuple[int, int]:
        """Append the content of a file.

        Args:
            fd: the file, open for reading.
            size: of it, in bytes.

        Returns:
            Offset and size of the content in the data file.

        Raises:
            DetachedError: the data file cannot be written.
            OSError: the file cannot be read.
        """
        self._create()
        start = self._end
        for offset, length in copying.data_of(fd, size):
            head = offset.to_bytes(8, "little") + length.to_bytes(8, "little")
            if length <= len(copying.BUFFER) - _EXTENT:
                self._append_small(head, fd, offset, length)
            else:
                self._write(head)
                self._append(fd, offset, length)
        return start, self._end - start

    def _create(self) -> None:
        if self._fd >= 0:
            return
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._fd = os.open(NAME, flags, 0o600, dir_fd=self._image_dir)
        except OSError as error:
            raise DetachedError(f"can't create {NAME} in the image directory: {error}") from error
        self._write(_MAGICS)

    def _write(self, data: bytes | memoryview) -> None:
        try:
            written = os.pwrite(self._fd, data, self._end)
        except OSError as error:
            raise _cannot_write(error) from error
        if written != len(data):
            raise _cannot_write(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        self._end += len(data)

    def _append_small(self, head: bytes, fd: int, offset: int, length: int) -> None:
        """Append an extent at once."""
        copying.BUFFER[:_EXTENT] = head
        extent = copying.BUFFER[: _EXTENT + length]
        if os.preadv(fd, [extent[_EXTENT:]], offset) != length:
            raise _shorter()
        self._write(extent)

    def _append(self, fd: int, offset: int, length: int) -> None:
        try:
            copied = copying.copy_data(fd, offset, self._fd, self._end, length)
        except OSError as error:
            raise _cannot_write(error) from error
        if copied != length:
            raise _shorter()
        self._end += length


class DataFileReader:
    """Gives files their data back from the data file."""

    def __init__(self, fd: int) -> None:
        """Take an fd of the data file, which stays the caller's; raises DetachedError."""
        self.fd = fd
        self._size = os.fstat(fd).st_size
        if os.pread(fd, len(_MAGICS), 0) != _MAGICS:
            raise _damaged("it does not start with the magic numbers of a data file")

    def check(self, at: int, size: int, file_size: int) -> None:
        """See that a content is whole and fits a file; raises DetachedError.

        Args:
            at: its offset in the data file.
            size: its size there.
            file_size: of the file that it is for.
        """
        for _ in self._extents(at, size, file_size):
            pass

    def copy(self, at: int, size: int, fd: int, file_size: int) -> None:
        """Give an empty file its content.

        Args:
            at: the content's offset in the data file.
            size: its size there.
            fd: the file, open for writing.
            file_size: what the file's size shall be.

        Raises:
            DetachedError: the data file is damaged.
            OSError: the file cannot be written.
        """
        os.ftruncate(fd, file_size)
        for offset, length, data in self._extents(at, size, file_size):
            if copying.copy_data(self.fd, data, fd, offset, length) != length:
                raise _damaged("a content is cut off")

    def _extents(self, at: int, size: int, file_size: int) -> Iterator[tuple[int, int, int]]:
        """Yield each extent: its offset and length in the file, its offset in the data file."""
        end, last = at + size, 0
        if at < len(_MAGICS) or end > self._size:
            raise _damaged("a content lies outside of it")
        while at < end:
            head = os.pread(self.fd, _EXTENT, at)
            offset, length = int.from_bytes(head[:8], "little"), int.from_bytes(head[8:], "little")
            at += _EXTENT
            if offset < last or not 0 < length <= min(end - at, file_size - offset):
                raise _damaged("an extent lies outside of its file")
            yield offset, length, at
            at += length
            last = offset + length


def open_data(image_dir: int) -> int:
    """Open the data file of an image directory.

    Args:
        image_dir: fd of the directory; it stays the caller's.

    Returns:
        An fd, the caller's.

    Raises:
        DetachedError: it is not there, or no regular file.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        fd = os.open(NAME, flags, dir_fd=image_dir)
    except OSError as error:
        raise DetachedError(
            f"can't open {NAME} ({why(error)}), but the images need it: copy the whole directory"
        ) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise DetachedError(f"{NAME} is no regular file: copy the whole directory of images")
    return fd


def _shorter() -> OSError:
    return OSError(errno.EIO, "the file became shorter while it was dumped")


def _cannot_write(error: OSError) -> DetachedError:
    return DetachedError(f"can't write {NAME}: {why(error)}")


def _damaged(what: str) -> DetachedError:
    return DetachedError(
        f"{NAME} is damaged ({what}): restore from an undamaged copy of the images"
    )
