# SPDX-License-Identifier: GPL-2.0-only
"""Mounts of a superblock that no attached mount shows, at dump.

Two kinds of filesystem can come back. Those that lie elsewhere (on a block device, in the
kernel) are mounted again: a trial mount, seen by this process alone, shows the very
superblock, and then serves as a bind source does. Those that live in memory alone are
made anew with their contents, if it is proven that nobody else holds them.
"""

from __future__ import annotations

from criu_detached.describe import DetachedMount, describe_mount
from criu_detached.remount import remounted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from criu_detached.classify import Kind
    from criu_detached.kernel import FileFacts
    from criu_detached.recordfile import RecordWriter
    from criu_detached.records import Filesystem
    from criu_detached.sources import Source, SourceFinder


class SoleHeld:
    """The sole-held filesystems of one dump."""

    def __init__(self, finder: SourceFinder, records: Callable[[], RecordWriter]) -> None:
        """Take what it needs.

        Args:
            finder: knows the attached mounts.
            records: gives the record file.
        """
        self._finder = finder
        self._records = records
        self._filesystems: dict[int, Filesystem] = {}  # by the device of the superblock

    def describe(self, fd: int, link: bytes, facts: FileFacts, kind: Kind) -> DetachedMount:
        """Describe a mount that has no bind source.

        Args:
            fd: a file on it.
            link: its path from the mount's root, as its link shows it.
            facts: of the file.
            kind: what the classifier said.

        Raises:
            DetachedError: its filesystem cannot come back.
        """

        def candidates(dev: int, fs_type: bytes | None, magic: int) -> Iterator[Source]:
            for source in remounted(fd, dev, fs_type, self._number(dev)):
                if dev not in self._filesystems and source.filesystem is not None:
                    self._filesystems[dev] = source.filesystem
                    self._records().filesystem(source.filesystem)
                yield source

        return describe_mount(fd, link, facts, kind, candidates)

    def _number(self, dev: int) -> int:
        known = self._filesystems.get(dev)
        return known.id if known else len(self._filesystems) + 1
