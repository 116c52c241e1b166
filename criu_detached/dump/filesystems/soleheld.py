# SPDX-License-Identifier: GPL-2.0-only
"""Mounts of a superblock that no attached mount shows, at dump.

Two kinds of filesystem can come back. Those that lie elsewhere (on a block device, in the
kernel) are remounted: a probe mount, seen by this process alone, shows the very
superblock, and then serves as a bind source does. Those that live in memory alone are
recreated with their contents, if it is proven that nobody else holds them.
"""

from __future__ import annotations

import os

from criu_detached.dump.describe.search import describe_mount
from criu_detached.dump.describe.sources import Sources
from criu_detached.dump.filesystems.disk import probe_disk
from criu_detached.dump.filesystems.memory import Memory
from criu_detached.dump.filesystems.overlay import probe_overlay
from criu_detached.dump.filesystems.probe import RemountedMount
from criu_detached.dump.filesystems.pseudo import probe_pseudo
from criu_detached.dump.observe.holders import attached_mount, outside_holder
from criu_detached.errors import DetachedError
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
    from collections.abc import Iterator

    from criu_detached.dump.context import DumpContext
    from criu_detached.dump.describe.mount import DetachedMount
    from criu_detached.dump.describe.new_mount import NewMount
    from criu_detached.dump.describe.sources import Source
    from criu_detached.dump.observe.machine import Machine
    from criu_detached.images.records import Filesystem

# What gives probe mounts of a filesystem, by how its type comes back.
_PROBES = {ON_DEVICE: probe_disk, LAYERED: probe_overlay, FRESH: probe_pseudo, KEYED: probe_pseudo}


class SoleHeld:
    """The sole-held filesystems of one dump."""

    def __init__(self, context: DumpContext) -> None:
        """Begin with none.

        Args:
            context: of the dump.
        """
        self._context = context
        self._filesystems: dict[int, Filesystem] = {}  # by the device of the superblock
        self._memories: dict[int, Memory] = {}  # likewise

    def describe(self, new: NewMount, error: DetachedError) -> DetachedMount:
        """Describe a mount that has no bind source.

        Args:
            new: the mount as it was met.
            error: why there is no bind source.

        Raises:
            DetachedError: its filesystem cannot come back.
        """
        fs_type = new.file.fs_type
        # Who else has mounted a filesystem on a device shares it after the restore as before.
        on_device = os.major(new.dev) or fs_type.has(MADE_UP_DEVICE)
        where = None if on_device else attached_mount(self._context.machine, new.dev)
        if where is not None:
            raise DetachedError(f"{error}; its filesystem is mounted at {where}")
        if fs_type.comes_back == IN_MEMORY:
            return self._memory(new).describe(new)
        if fs_type.server:
            raise DetachedError(
                f"its filesystem is of type {fs_type.server}, which its server alone can mount"
                " again: mount it somewhere before the dump"
            )
        if fs_type.has(POWER_OF_MOUNTER) and self._context.criu.dumps_user_namespace():
            raise DetachedError(
                "its filesystem may belong to the dumped user namespace, and would belong to criu's"
                " if it was mounted again: keep it mounted in the mount namespace of the tasks"
            )
        if fs_type.comes_back == LAYERED:
            _refuse_shared_overlay(self._context.machine, new.dev)
        if fs_type.comes_back not in _PROBES:
            raise error
        return self._by_probe(new, error)

    def _by_probe(self, new: NewMount, error: DetachedError) -> DetachedMount:
        """As describe: a probe mount is the source."""
        probes = _Probes(new, self, self._context.machine)
        try:
            return describe_mount(new, probes, RemountedMount)
        except DetachedError as other:
            if probes.refused:
                raise
            raise error from other

    def _memory(self, new: NewMount) -> Memory:
        """The filesystem in memory that a mount is of, if the dumped tasks alone hold it."""
        device, criu = new.dev, self._context.criu
        if device in self._memories:
            return self._memories[device]
        if not criu.flushes():
            raise DetachedError(
                "its filesystem is in memory alone, and this CRIU does not say when a dump ends,"
                " which it takes to save it"
            )
        if os.fstat(criu.image_dir()).st_dev == device:
            raise DetachedError(
                "its filesystem is in memory alone, and the image directory is on it: the images"
                " would be gone with the processes; give another one (--images-dir)"
            )
        holder = _outside_holder(self._context.machine, device, "its filesystem is in memory alone")
        if holder is not None:
            raise DetachedError(
                f"its filesystem is in memory alone, and {holder} holds it too: with two of it"
                " the data would part; end that, or mount the filesystem somewhere again"
            )
        memory = Memory(self.number(device), new, self._context)
        self._filesystems[device] = memory.record
        self._memories[device] = memory
        return memory

    def number(self, dev: int) -> int:
        """The number of a filesystem's record; the next one if it has none.

        Args:
            dev: device of its superblock.
        """
        known = self._filesystems.get(dev)
        return known.id if known else len(self._filesystems) + 1

    def record(self, dev: int, filesystem: Filesystem) -> None:
        """Write a filesystem's record, once.

        Args:
            dev: device of its superblock.
            filesystem: the record.
        """
        if dev not in self._filesystems:
            self._filesystems[dev] = filesystem
            self._context.records.filesystem(filesystem)


class _Probes(Sources):
    """Probe mounts, as sources of one mount."""

    def __init__(self, new: NewMount, sole_held: SoleHeld, machine: Machine) -> None:
        """Make none yet.

        Args:
            new: the mount as it was met.
            sole_held: numbers and records its filesystem.
            machine: what is around the dump.
        """
        self._machine = machine
        self._new = new
        self._sole_held = sole_held
        self.refused = False  # there can be no probe mount

    def candidates(
        self, dev: int, fs_type: bytes | None, magic: int, root: bytes | None = None
    ) -> Iterator[Source]:
        """As of Sources."""
        probe = _PROBES[self._new.file.fs_type.comes_back]
        try:
            for source in probe(self._new, self._sole_held.number(dev), self._machine):
                self._sole_held.record(dev, source.record)
                yield source
        except DetachedError:
            self.refused = True
            raise


def _outside_holder(
    machine: Machine, device: int, what: str, many_devices: bool = False
) -> str | None:
    try:
        return outside_holder(machine, device, many_devices)
    except OSError as error:
        raise DetachedError(f"{what}, and whether others hold it is unsure: {error}") from error


def _refuse_shared_overlay(machine: Machine, device: int) -> None:
    """Two overlays with one upper directory would be the end of it."""
    holder = _outside_holder(
        machine, device, "it is on an overlay that no attached mount shows", many_devices=True
    )
    if holder is not None:
        raise DetachedError(
            f"it is on an overlay that no attached mount shows, and {holder} holds that too: end"
            " it, or mount the overlay somewhere again"
        )
