# SPDX-License-Identifier: GPL-2.0-only
"""The record file ``criu-detached.img``: written as records arise, read all at once.

Layout (docs/image-format.md): two magic numbers as in CRIU's images
(criu/include/magic.h), then entries of a 32-bit little-endian size and an ``Entry``
message. The last entry is a trailer with the number of entries and a checksum. Every
append overwrites the trailer, and writes a new one, in a single write: the file is
complete at every moment, and a write that fails does so while the dump can fail.
"""

from __future__ import annotations

import os
from binascii import crc32

from criu_detached.errors import DetachedError, reason
from criu_detached.records import (
    FORMAT,
    Entry,
    ExtFile,
    File,
    Header,
    Mount,
    Trailer,
)
from criu_detached.wire import Message, WireError, decode, encode

NAME = "criu-detached.img"

IMG_COMMON_MAGIC = 0x54564319  # criu/include/magic.h
OWN_MAGIC = 0x44544D31  # "1MTD"; CRIU's own are coordinates of towns

MAX_FILE = 64 << 20  # bytes; half a million files
MAX_ENTRY = 64 << 10  # bytes; a path is at most 4096

_MAGICS = IMG_COMMON_MAGIC.to_bytes(4, "little") + OWN_MAGIC.to_bytes(4, "little")


def _framed(entry: Entry) -> bytes:
    payload = encode(entry)
    return len(payload).to_bytes(4, "little") + payload


class RecordWriter:
    """Writes the records of one dump into CRIU's image directory."""

    def __init__(self, image_dir: int, header: Header) -> None:
        """Create the file.

        Args:
            image_dir: fd of the directory; it stays the caller's.
            header: the first record.

        Raises:
            DetachedError: it cannot be written.
        """
        self._crc = 0
        self._entries = 0
        self._end = 0
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._fd = os.open(NAME, flags, 0o600, dir_fd=image_dir)
        except OSError as error:
            raise DetachedError(f"can't create {NAME} in the image directory: {error}") from error
        self._append(_MAGICS, Entry(header=header))

    def mount(self, record: Mount) -> None:
        """Append a mount; raises DetachedError when it cannot be written."""
        self._append(b"", Entry(mount=record))

    def file(self, record: File) -> None:
        """Append a file; raises DetachedError when it cannot be written."""
        self._append(b"", Entry(file=record))

    def ext_file(self, record: ExtFile) -> None:
        """Append an EXT file; raises DetachedError when it cannot be written."""
        self._append(b"", Entry(ext_file=record))

    def _append(self, before: bytes, entry: Entry) -> None:
        new = before + _framed(entry)
        crc = crc32(new, self._crc)
        trailer = _framed(Entry(trailer=Trailer(entries=self._entries + 1, crc32=crc)))
        if len(new) > MAX_ENTRY or self._end + len(new) + len(trailer) > MAX_FILE:
            raise DetachedError(f"{NAME} would grow over its limits: too many files")
        try:
            written = os.pwrite(self._fd, new + trailer, self._end)
        except OSError as error:
            raise DetachedError(f"can't write {NAME}: {error}") from error
        if written != len(new) + len(trailer):
            raise DetachedError(f"can't write {NAME}: the image directory is full")
        self._end += len(new)
        self._crc = crc
        self._entries += 1


class Records:
    """All records of an image directory, checked."""

    def __init__(self) -> None:
        self.header = Header()
        self.mounts: dict[int, Mount] = {}
        self.files: dict[tuple[int, int], File] = {}
        self.ext_files: dict[int, ExtFile] = {}

    def add(self, record: Message | None) -> None:
        """Take one record in; raises WireError when it does not fit the others."""
        if isinstance(record, Mount):
            if self.mounts.setdefault(record.mnt_id, record) is not record:
                raise WireError(f"mount {record.mnt_id} is there twice")
        elif isinstance(record, File):
            if record.mnt_id not in self.mounts:
                raise WireError(f"a file is on mount {record.mnt_id}, which is not there")
            key = (record.mnt_id, record.ino)
            if self.files.setdefault(key, record) is not record:
                raise WireError(f"inode {record.ino} of mount {record.mnt_id} is there twice")
        elif isinstance(record, ExtFile):
            if (record.mnt_id, record.ino) not in self.files:
                raise WireError(f"external file {record.id:#x} is on a file that is not there")
            if self.ext_files.setdefault(record.id, record) is not record:
                raise WireError(f"external file {record.id:#x} is there twice")
        else:
            raise WireError("an entry holds no record, or several")


def read_records(image_dir: int) -> Records:
    """Read and check the record file.

    Args:
        image_dir: fd of CRIU's image directory; it stays the caller's.

    Raises:
        DetachedError: it is missing, cut, changed, too large, or of another version.
    """
    try:
        return _parse(_read(image_dir))
    except WireError as error:
        raise DetachedError(
            f"{NAME} is damaged ({error}): restore from an undamaged copy of the images"
        ) from error


def _read(image_dir: int) -> bytes:
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        fd = os.open(NAME, flags, dir_fd=image_dir)
    except FileNotFoundError as error:
        raise DetachedError(
            f"{NAME} is missing from the image directory, but the images need it:"
            " copy the whole directory"
        ) from error
    except OSError as error:
        raise DetachedError(f"can't open {NAME}: {reason(error.errno or 0)}") from error
    try:
        size = os.fstat(fd).st_size
        if size > MAX_FILE:
            raise WireError(f"it has {size} bytes, more than {MAX_FILE}")
        data = b""
        while len(data) <= size and (piece := os.read(fd, size + 1 - len(data))):
            data += piece
        return data
    except OSError as error:
        raise DetachedError(f"can't read {NAME}: {reason(error.errno or 0)}") from error
    finally:
        os.close(fd)


def _entries(data: bytes) -> list[tuple[int, Entry]]:
    """Return each entry with its offset; the framing alone is checked."""
    entries = []
    at = len(_MAGICS)
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        if size > MAX_ENTRY:
            raise WireError(f"an entry of {size} bytes is over the limit of {MAX_ENTRY}")
        if size > len(data) - at - 4:
            raise WireError("the last entry is cut off")
        entries.append((at, decode(Entry, data[at + 4 : at + 4 + size])))
        at += 4 + size
    return entries


def _parse(data: bytes) -> Records:
    if data[: len(_MAGICS)] != _MAGICS:
        raise WireError("it does not start with the magic numbers of a record file")
    entries = _entries(data)
    if not entries or not isinstance(trailer := entries[-1][1].content(), Trailer):
        raise WireError("its end is missing")
    _check_version(entries[0][1])
    if trailer.entries != len(entries) - 1:
        raise WireError(f"it holds {len(entries) - 1} entries instead of {trailer.entries}")
    if trailer.crc32 != crc32(data[: entries[-1][0]]):
        raise WireError("its checksum is wrong")
    records = Records()
    first = entries[0][1].header
    assert first is not None  # _check_version
    records.header = first
    for _, entry in entries[1:-1]:
        records.add(entry.content())
    return records


def _check_version(first: Entry) -> None:
    if first.header is None:
        raise WireError("its header is missing")
    if first.header.format != FORMAT:
        raise DetachedError(
            f"{NAME} has format {first.header.format}, this plugin reads format {FORMAT}:"
            " restore with the version of criu-detached that dumped it"
        )
