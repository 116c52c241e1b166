# SPDX-License-Identifier: GPL-2.0-only
"""From the record of a filesystem that nobody else shows to a mount of it, at restore.

Runs in a mount namespace of this process alone, before any task exists.
"""

from __future__ import annotations

import os

from criu_detached import kernel
from criu_detached.remount import mount_again

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.realise import Means
    from criu_detached.recordfile import Records


def make_filesystems(records: Records, means: Means) -> None:
    """Mount every filesystem, or make it; their roots are in ``means.tops`` then.

    Args:
        records: all of the dump.
        means: what the mounts on them are realised with.

    Raises:
        DetachedError: one of them cannot come back.
    """
    for number, filesystem in records.filesystems.items():
        tree = mount_again(filesystem)
        means.tops[number] = tree
        root = os.open("/", kernel.O_PATH)
        try:
            kernel.attach(tree, root)  # only an attached mount can be cloned in part
        finally:
            os.close(root)
