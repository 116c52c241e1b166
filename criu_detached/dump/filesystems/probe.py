# SPDX-License-Identifier: GPL-2.0-only
"""Probe mounts: a filesystem is mounted for a moment as a restore would, where nobody sees it.

A probe mount shows what a detached mount does, and so serves as its source.
"""

from __future__ import annotations

from criu_detached import kernel
from criu_detached.criu import log
from criu_detached.dump.describe.roots import SameFile
from criu_detached.dump.describe.source_mount import SourceMount
from criu_detached.dump.describe.sources import Source
from criu_detached.images.records import REMOUNT
from criu_detached.kernel import mountinfo, new_mounts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from criu_detached.images.records import Filesystem

# linux/fs.h: flags of a superblock that statmount(2) tells, as mount options
_SB_FLAGS = {0x1: b"ro", 0x10: b"sync", 0x80: b"dirsync", 1 << 25: b"lazytime"}

_BY_NUMBER = SameFile()


class ProbeSource(Source):
    """A probe mount, and the record of its filesystem."""

    origin = REMOUNT
    tells_root = False
    is_proven = True

    def __init__(self, probe: Source, record: Filesystem, same_file: SameFile = _BY_NUMBER) -> None:
        """Take over a probe mount.

        Args:
            probe: the mount.
            record: how its filesystem is mounted again.
            same_file: tells its files apart; as a rule its superblock is the one that is there.
        """
        super().__init__(probe.info, probe.fd)
        self.record = record
        self.filesystem = record.id
        self.same_file = same_file

    @property
    def read_only(self) -> bool:
        """Whether the superblock is that is there; the probe mount of an overlay always is."""
        return b"ro" in self.record.options

    def id_maps(self) -> tuple[list[bytes], list[bytes]]:
        """None: it was just mounted."""
        return [], []


class RemountedMount(SourceMount):
    """A detached mount of a filesystem that the restore will mount again."""

    is_clone = False

    def confine(self) -> None:
        """Give tasks in a user namespace no privileges: what is remounted is the host's."""
        confined = self.record.attr | kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV
        if confined != self.record.attr:
            log.info(
                f"mount {self.record.mnt_id} will be nosuid and nodev: its filesystem will be"
                " mounted by the host, and the dumped tasks are in a user namespace"
            )
            self.record.attr = confined
        super().confine()

    def way_back(self) -> str:
        """Say that the filesystem will be mounted again."""
        return "is on a filesystem that will be mounted again"


def mount_probe(
    fs_type: bytes, source: bytes, options: list[bytes], layers: Iterable[tuple[bytes, int]] = ()
) -> Source:
    """Mount a filesystem in this mount namespace, a private one, and look at it.

    Args:
        fs_type: its name.
        source: what is mounted, as mount(8) is told.
        options: as text.
        layers: options that take a directory, each with its fd.

    Returns:
        The mount, which stays when the namespace is left; the caller closes it.

    Raises:
        OSError: the kernel refuses it.
    """
    tree = new_mounts.new_mount(fs_type, source, options, layers)
    try:
        new_mounts.attach_at_root(tree)
        return Source(mountinfo.info_of(kernel.fstat(tree).mnt_id), tree)
    except BaseException:
        tree.close()
        raise


def superblock_flags(flags: int) -> list[bytes]:
    """The options of a superblock that are of no filesystem in particular."""
    return [option for flag, option in _SB_FLAGS.items() if flags & flag]
