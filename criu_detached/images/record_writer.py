# SPDX-License-Identifier: GPL-2.0-only
"""Writes the record file of a dump, record by record.

Every write overwrites the trailer with the new entries and a new trailer: the file is complete at
every moment, and a write that fails does so while the dump can fail.
"""

from __future__ import annotations

import os
from binascii import crc32

from criu_detached.errors import DetachedError
from criu_detached.images.recordfile import (
    MAGICS,
    MAX_ENTRY,
    MAX_FILE,
    NAME,
    TRAILER_SIZE,
    framed,
)
from criu_detached.images.records import (
    BoundSocket,
    ExtFile,
    File,
    Filesystem,
    Ghost,
    Header,
    Mount,
    Node,
    Trailer,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.images.message import Message


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
        self._pending = bytearray(MAGICS)
        self._crc = 0  # of what is written, without the trailer
        self._entries = 0
        self._end = 0  # where the trailer is, in bytes
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._fd = os.open(NAME, flags, 0o600, dir_fd=image_dir)
        except OSError as error:
            raise DetachedError(f"can't create {NAME} in the image directory: {error}") from error
        self._append(header)

    def mount(self, record: Mount) -> None:
        """Append a mount; raises DetachedError when it cannot be written."""
        self._append(record)

    def file(self, record: File) -> None:
        """Append a file; raises DetachedError when it cannot be written."""
        self._append(record)

    def ext_file(self, record: ExtFile) -> None:
        """Append an EXT file; raises DetachedError when it cannot be written."""
        self._append(record)

    def ghost(self, record: Ghost) -> None:
        """Append a deleted file; raises DetachedError when it cannot be written."""
        self._append(record)

    def filesystem(self, record: Filesystem) -> None:
        """Append a filesystem; raises DetachedError when it cannot be written."""
        self._append(record)

    def node(self, record: Node) -> None:
        """Append a node, for the next flush; raises DetachedError when there are too many."""
        self._add(record)

    def bound_socket(self, record: BoundSocket) -> None:
        """Append the name of a socket; raises DetachedError when it cannot be written."""
        self._append(record)

    def framed(self, records: bytes, entries: int) -> None:
        """Append entries that are framed already, for the next flush.

        Args:
            records: the entries.
            entries: how many.

        Raises:
            DetachedError: there are too many.
        """
        self._check_size(len(records))
        self._pending += records
        self._entries += entries

    def flush(self) -> None:
        """Write what is pending; raises DetachedError when it cannot be written."""
        if not self._pending:
            return
        crc = crc32(self._pending, self._crc)
        data = self._pending + framed(Trailer(entries=self._entries, crc32=crc))
        try:
            written = os.pwrite(self._fd, data, self._end)
        except OSError as error:
            raise DetachedError(f"can't write {NAME}: {error}") from error
        if written != len(data):
            raise DetachedError(f"can't write {NAME}: the image directory is full")
        self._end += len(self._pending)
        self._crc = crc
        self._pending.clear()

    def _append(self, record: Message) -> None:
        self._add(record)
        self.flush()

    def _add(self, record: Message) -> None:
        new = framed(record)
        if len(new) > MAX_ENTRY:
            raise DetachedError(f"a record of {len(new)} bytes is over the limits of {NAME}")
        self._check_size(len(new))
        self._pending += new
        self._entries += 1

    def _check_size(self, more: int) -> None:
        if self._end + len(self._pending) + more + TRAILER_SIZE > MAX_FILE:
            raise DetachedError(f"{NAME} would grow over its limit: too many files")
