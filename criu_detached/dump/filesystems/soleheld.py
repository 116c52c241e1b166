# SPDX-License-Identifier: GPL-2.0-only
"""Mounts of a superblock that no attached mount shows, at dump.

Two kinds of filesystem can come back. Those that lie elsewhere (on a block device, in the
kernel) are mounted again: a trial mount, seen by this process alone, shows the very
superblock, and then serves as a bind source does. Those that live in memory alone are
made anew with their contents, if it is proven that nobody else holds them.
"""

from __future__ import annotations

import os

from criu_detached.dump.describe.mount import DetachedMount, describe_mount
from criu_detached.dump.filesystems.disk import remounted
from criu_detached.dump.filesystems.memory import Memory
from criu_detached.dump.filesystems.overlay import overlaid
from criu_detached.dump.filesystems.pseudo import mounted_anew
from criu_detached.dump.observe.holders import attached_mount, outside_holder
from criu_detached.errors import DetachedError
from criu_detached.filesystems.superblock import type_of
from criu_detached.filesystems.types import (
    FRESH,
    IN_MEMORY,
    KEYED,
    LAYERED,
    MADE_UP_DEVICE,
    ON_DEVICE,
    POWER_OF_MOUNTER,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from criu_detached.criu.criu import Criu
    from criu_detached.dump.describe.sources import Source
    from criu_detached.dump.kinds.recreated import MadeAnew
    from criu_detached.dump.observe.classify import Kind
    from criu_detached.images.datafile import DataFileWriter
    from criu_detached.images.record_writer import RecordWriter
    from criu_detached.images.records import Filesystem
    from criu_detached.kernel import FileStat

# What gives trial mounts of a filesystem, by how its type comes back.
_TRIALS = {ON_DEVICE: remounted, LAYERED: overlaid, FRESH: mounted_anew, KEYED: mounted_anew}


class SoleHeld:
    """The sole-held filesystems of one dump."""

    def __init__(
        self, criu: Criu, records: Callable[[], RecordWriter], contents: DataFileWriter
    ) -> None:
        """Take what it needs.

        Args:
            criu: CRIU.
            records: gives the record file.
            contents: where contents of files go.
        """
        self._criu = criu
        self._records = records
        self._contents = contents
        self._filesystems: dict[int, Filesystem] = {}  # by the device of the superblock
        self._memories: dict[int, Memory] = {}  # likewise

    def finish(self, made_anew: MadeAnew) -> None:
        """Save, once, what the tasks can reach of filesystems in memory.

        Args:
            made_anew: takes note of deleted files.

        Raises:
            DetachedError: something cannot be saved.
        """
        while self._memories:
            self._memories.popitem()[1].finish(made_anew)

    def describe(
        self, fd: int, link: bytes, facts: FileStat, kind: Kind, error: DetachedError
    ) -> DetachedMount:
        """Describe a mount that has no bind source.

        Args:
            fd: a file on it.
            link: its path from the mount's root, as its link shows it.
            facts: of the file.
            kind: what the classifier said.
            error: why there is no bind source.

        Raises:
            DetachedError: its filesystem cannot come back.
        """
        device = kind.statmount.sb_dev if kind.statmount else facts.dev
        fs_type = type_of(fd)
        # Who else has mounted a filesystem on a device shares it after the restore as before.
        on_device = os.major(device) or fs_type.has(MADE_UP_DEVICE)
        where = None if on_device else attached_mount(device)
        if where is not None:
            raise DetachedError(f"{error}; its filesystem is mounted at {where}")
        if fs_type.comes_back == IN_MEMORY:
            return self._memory(fd, facts, device, kind).describe(fd, link, facts, kind)
        if fs_type.server:
            raise DetachedError(
                f"its filesystem is of type {fs_type.server}, which its server alone can mount"
                " again: mount it somewhere before the dump"
            )
        if fs_type.has(POWER_OF_MOUNTER) and self._criu.dumps_user_namespace():
            raise DetachedError(
                "its filesystem may belong to the dumped user namespace, and would belong to criu's"
                " if it was mounted again: keep it mounted in the mount namespace of the tasks"
            )
        if fs_type.comes_back == LAYERED:
            _refuse_shared_overlay(device)
        if fs_type.comes_back not in _TRIALS:
            raise error
        return self._by_trial(fd, link, facts, kind, error)

    def _by_trial(
        self, fd: int, link: bytes, facts: FileStat, kind: Kind, error: DetachedError
    ) -> DetachedMount:
        """As describe: a trial mount is the bind source."""
        refusals: list[DetachedError] = []

        def candidates(dev: int, _: bytes | None, magic: int, __: bytes | None) -> Iterator[Source]:
            try:
                yield from mounted_again(dev)
            except DetachedError as refusal:
                refusals.append(refusal)
                raise

        def mounted_again(dev: int) -> Iterator[Source]:
            trials = _TRIALS[type_of(fd).comes_back]
            for source in trials(fd, facts, kind.statmount, self._number(dev)):
                if dev not in self._filesystems and source.filesystem is not None:
                    self._filesystems[dev] = source.filesystem
                    self._records().filesystem(source.filesystem)
                yield source

        try:
            return describe_mount(fd, link, facts, kind, candidates)
        except DetachedError as other:
            if refusals:
                raise
            raise error from other

    def _memory(self, fd: int, facts: FileStat, device: int, kind: Kind) -> Memory:
        """The filesystem in memory of an open file, if the dumped tasks alone hold it."""
        if device in self._memories:
            return self._memories[device]
        if not self._criu.flushes():
            raise DetachedError(
                "its filesystem is in memory alone, and this CRIU does not say when a dump ends,"
                " which it takes to save it"
            )
        if os.fstat(self._criu.image_dir()).st_dev == device:
            raise DetachedError(
                "its filesystem is in memory alone, and the image directory is on it: the images"
                " would be gone with the processes; give another one (--images-dir)"
            )
        holder = _outside_holder(device, "its filesystem is in memory alone")
        if holder is not None:
            raise DetachedError(
                f"its filesystem is in memory alone, and {holder} holds it too: with two of it"
                " the data would part; end that, or mount the filesystem somewhere again"
            )
        memory = Memory(
            self._number(device),
            fd,
            kind,
            self._records(),
            self._contents,
            self._criu.dumps_user_namespace(),
        )
        self._filesystems[device] = memory.record
        self._memories[device] = memory
        return memory

    def _number(self, dev: int) -> int:
        known = self._filesystems.get(dev)
        return known.id if known else len(self._filesystems) + 1


def _outside_holder(device: int, what: str) -> str | None:
    try:
        return outside_holder(device)
    except OSError as error:
        raise DetachedError(f"{what}, and whether others hold it is unsure: {error}") from error


def _refuse_shared_overlay(device: int) -> None:
    """Two overlays with one upper directory would be the end of it."""
    holder = _outside_holder(device, "it is on an overlay that no attached mount shows")
    if holder is not None:
        raise DetachedError(
            f"it is on an overlay that no attached mount shows, and {holder} holds that too: end"
            " it, or mount the overlay somewhere again"
        )
