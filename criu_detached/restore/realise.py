# SPDX-License-Identifier: GPL-2.0-only
"""Recreate a detached mount from its record: clone its source, and give the clone its attributes.

Files that are opened beneath the tree fd keep the mount when the tree fd is closed; it is
detached then.
"""

from __future__ import annotations

from criu_detached import kernel
from criu_detached.errors import DetachedError, quote
from criu_detached.filesystems.attributes import attributes_to_change
from criu_detached.restore.trees import Realised

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.images.records import Mount
    from criu_detached.kernel.fds import Fd
    from criu_detached.restore.context import ProcessFds
    from criu_detached.restore.source import Source


class Realiser:
    """Realises mounts on which nothing is deleted; with_ghosts.py has one for all mounts."""

    def realise(self, source: Source, fds: ProcessFds) -> Realised:
        """Realise a mount.

        Args:
            source: what it is cloned from.
            fds: those of this process.

        Raises:
            DetachedError: the source is gone, is another one, or cannot be cloned, or a deleted
                file cannot be made.
        """
        with source.open_top() as top, source.open_root(top, source.path) as root:
            source.check_type(root)
            same = source.check_superblock(root) and source.is_same_root(root)
            source.check_id_map(root)
            tree = source.clone(root)
        try:
            set_attributes(source, tree, fds.userns)
        except DetachedError:
            tree.close()
            raise
        return Realised(tree, same, [])


def set_attributes(source: Source, tree: int, userns: int = -1) -> None:
    """Give a clone the attributes of its mount; without a user namespace it has its id-map.

    Args:
        source: what it was cloned from.
        tree: its tree fd.
        userns: fd of a user namespace with its id-maps, or -1.

    Raises:
        DetachedError: the kernel refuses them.
    """
    attr_set, attr_clr = attributes_to_change(source.mount)
    if userns < 0:
        attr_set &= ~kernel.MOUNT_ATTR_IDMAP
    propagation = kernel.MS_PRIVATE if source.mount.private else 0
    source.set_flags(tree, attr_set, attr_clr, userns, propagation)


def open_place(mount: Mount, parent: int) -> Fd:
    """Open the directory or file of an anonymous tree that a mount of it is attached on.

    Args:
        mount: its record.
        parent: tree fd of its parent.

    Raises:
        OSError: it is not there.
    """
    fd, _ = kernel.open_beneath(parent, mount.place, kernel.O_PATH | kernel.O_NOFOLLOW)
    return fd


def cannot_attach(mount: Mount, error: OSError) -> DetachedError:
    """Say that a mount cannot be attached in its anonymous tree."""
    return DetachedError(
        f"can't attach mount {mount.mnt_id} at {quote(mount.place)} in its anonymous tree:"
        f" {error}; Linux 6.15 or newer is needed"
    )
