# SPDX-License-Identifier: GPL-2.0-only
"""Trial mounts: a filesystem is mounted for a moment as a restore would, where nobody sees it."""

from __future__ import annotations

import os

from criu_detached import kernel
from criu_detached.dump.describe.sources import Source
from criu_detached.kernel import mountinfo, new_mounts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

# linux/fs.h: flags of a superblock that statmount(2) tells, as mount options
_SB_FLAGS = {0x1: b"ro", 0x10: b"sync", 0x80: b"dirsync", 1 << 25: b"lazytime"}


def mount_for_trial(
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
        return Source(mountinfo.info_of(kernel.fstat(tree).mnt_id), False, tree)
    except BaseException:
        os.close(tree)
        raise


def superblock_flags(flags: int) -> list[bytes]:
    """The options of a superblock that are of no filesystem in particular."""
    return [option for flag, option in _SB_FLAGS.items() if flags & flag]
