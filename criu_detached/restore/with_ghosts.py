# SPDX-License-Identifier: GPL-2.0-only
"""From the record of a mount with deleted files to a mount that has them."""

from __future__ import annotations

import os

from criu_detached import kernel, paths
from criu_detached.errors import DetachedError, why
from criu_detached.filesystems.attributes import needs_id_map
from criu_detached.images.records import Ghost, Mount
from criu_detached.restore.ghosts import Workshop, depth
from criu_detached.restore.inodes import give_attributes, give_owners
from criu_detached.restore.realise import (
    Means,
    Realised,
    clone,
    let_go,
    open_root,
    set_attributes,
    set_flags,
)
from criu_detached.restore.source import check_id_map, check_superblock, check_type, is_same_root


def realise_with_ghosts(
    mount: Mount, ghosts: list[Ghost], top: int, where: str, means: Means
) -> Realised:
    """As realise, of a mount with deleted files: it is given its attributes when they are made.

    Args:
        mount: its record, checked.
        ghosts: the records of its deleted files, checked.
        top: the source's root.
        where: the source, for messages.
        means: what it takes.

    Raises:
        DetachedError: the source is another one, or a deleted file cannot be made.
    """
    source = mount.bind_source
    assert source is not None
    same = check_superblock(mount, top, where, means) and _has_same_root(mount, top, where)
    check_id_map(mount, top, where, means)
    workshop = Workshop(_writable_clone(top, where, means), means.proc, means.reader, same)
    realised = Realised(-1, same)
    try:
        try:
            path = source.path
            if mount.root_deleted:
                held = [ghost for ghost in ghosts if ghost.file and ghost.file.path == paths.ROOT]
                path = workshop.make_root(path, mount.root_type, held[0] if held else None)
            root = open_root(top, path, where)
            try:
                check_type(mount, root, where)
                realised.tree = clone(root, where, means)
            finally:
                os.close(root)
            set_flags(realised.tree, 0, kernel.MOUNT_ATTR_RDONLY, where)
            for ghost in sorted(ghosts, key=depth):
                realised.ghosts.append((ghost, workshop.make(ghost, realised.tree, path)))
        finally:
            workshop.close()
        if needs_id_map(mount):
            # Only now: whoever makes a file needs a place in the id-map of its mount.
            give_owners(realised.ghosts, means.proc, mount.uid_map, mount.gid_map)
            set_flags(realised.tree, kernel.MOUNT_ATTR_IDMAP, 0, where, means.userns_fd)
        give_attributes(realised.ghosts, means.proc)
        set_attributes(mount, realised.tree, where)
        return realised
    except OSError as error:
        let_go(realised)
        raise DetachedError(
            f"can't make the deleted files of {where} again: {why(error)}"
        ) from error
    except DetachedError:
        let_go(realised)
        raise


def _has_same_root(mount: Mount, top: int, where: str) -> bool:
    """Tell whether the mount's root is the dumped one; of a deleted one nothing can be told."""
    if mount.root_deleted or mount.root_handle is None:
        return True
    assert mount.bind_source is not None
    root = open_root(top, mount.bind_source.path, where)
    try:
        return is_same_root(mount, root, where)
    finally:
        os.close(root)


def _writable_clone(top: int, where: str, means: Means) -> int:
    """A clone of the whole bind source to work in."""
    tree = clone(top, where, means)
    try:
        set_flags(tree, 0, kernel.MOUNT_ATTR_RDONLY, where)
    except DetachedError:
        os.close(tree)
        raise
    return tree
