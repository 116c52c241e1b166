# SPDX-License-Identifier: GPL-2.0-only
"""What the parts of one dump work with: made once, and handed down."""

from __future__ import annotations

from criu_detached.dump.describe.sources import SourceFinder
from criu_detached.dump.writing import Recording
from criu_detached.once import once
from criu_detached.settings import Options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.criu.criu import Criu
    from criu_detached.criu.fast_path import FastPath
    from criu_detached.dump.observe.machine import Machine
    from criu_detached.images.datafile import DataFileWriter
    from criu_detached.images.record_writer import RecordWriter


class DumpContext:
    """CRIU, the fast path, and what is read and written for the whole dump."""

    def __init__(self, criu: Criu, fast_path: FastPath) -> None:
        """Take what runs this process; nothing is read or written yet.

        Args:
            criu: CRIU.
            fast_path: the fast path for plain files.
        """
        self.criu = criu
        self.fast_path = fast_path
        self.recording = Recording(criu, fast_path)
        self.sources = SourceFinder(criu)

    @property
    def records(self) -> RecordWriter:
        """The record file: see Recording.writer()."""
        return self.recording.writer()

    @once
    def settings(self) -> Options:
        """The settings; raises DetachedError."""
        return Options(self.criu.image_dir(), self.criu.plugin_options())

    @once
    def contents(self) -> DataFileWriter:
        """The data file, which takes what is in files that are recreated."""
        from criu_detached.images.datafile import DataFileWriter  # few dumps need it

        return DataFileWriter(self.criu.image_dir())

    @once
    def machine(self) -> Machine:
        """What is around the dump."""
        from criu_detached.dump.observe.machine import Machine  # few dumps need it

        return Machine()
