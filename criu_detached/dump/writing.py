# SPDX-License-Identifier: GPL-2.0-only
"""The record file of a dump, made when there is something to record."""

from __future__ import annotations

import os

from criu_detached.errors import DetachedError
from criu_detached.filesystems.superblock import boot_id
from criu_detached.images.record_writer import RecordWriter
from criu_detached.images.records import FORMAT, Header
from criu_detached.kernel import tasks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.criu.criu import Criu
    from criu_detached.criu.fast_path import FastPath


class Recording:
    """The records of one dump."""

    def __init__(self, criu: Criu, fast_path: FastPath) -> None:
        """Begin with none.

        Args:
            criu: CRIU.
            fast_path: makes records of plain files.
        """
        self._criu = criu
        self._fast_path = fast_path
        self._writer: RecordWriter | None = None

    def begun(self) -> bool:
        """Tell whether anything was recorded."""
        return self._writer is not None

    def writer(self) -> RecordWriter:
        """The record file; when it is first asked for, it is made and CRIU's inventory told.

        Raises:
            DetachedError: it cannot be made, or would not be with the images.
        """
        if self._writer is None:
            _refuse_stream()
            release = os.fsencode(os.uname().release)
            header = Header(format=FORMAT, boot_id=boot_id(), machine=release)
            self._writer = RecordWriter(self._criu.image_dir(), header)
            if self._criu.need_plugin():
                raise DetachedError("CRIU did not note in its inventory that the plugin is needed")
        return self._writer

    def finish(self) -> None:
        """Write the records of the fast path, which are in memory; raises DetachedError."""
        writer = self.writer()
        writer.framed(*self._fast_path.take_plain_records())
        writer.flush()


def _refuse_stream() -> None:
    """With --stream, images go to a process at a socket, and the record file would be lost."""
    if tasks.has_peer(b"streamer-capture.sock"):
        raise DetachedError("--stream cannot carry detached-mount records: dump without it")
