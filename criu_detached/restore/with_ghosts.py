# SPDX-License-Identifier: GPL-2.0-only
"""From the record of a mount with deleted files, ghosts, to a mount that has them."""

from __future__ import annotations

from criu_detached import kernel, paths
from criu_detached.errors import DetachedError, why
from criu_detached.filesystems.attributes import needs_id_map
from criu_detached.kernel.fds import Fd, Fds
from criu_detached.restore.ghosts import GhostBuilder, depth
from criu_detached.restore.inodes import give_attributes, give_owners
from criu_detached.restore.realise import Realiser, set_attributes
from criu_detached.restore.trees import Realised

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.images.records import Ghost
    from criu_detached.restore.context import ProcessFds
    from criu_detached.restore.source import Source


class GhostRealiser(Realiser):
    """Realises the mounts of a restore that has ghosts."""

    def __init__(self, ghosts: dict[int, list[Ghost]]) -> None:
        """Take the ghosts, by mount id."""
        self._ghosts = ghosts

    def realise(self, source: Source, fds: ProcessFds) -> Realised:
        """Realise a mount; one with ghosts gets its attributes when they are made."""
        ghosts = self._ghosts.get(source.mount.mnt_id, [])
        if not ghosts and not source.mount.root_deleted:
            return super().realise(source, fds)
        with source.open_top() as top:
            same = source.check_superblock(top) and _has_same_root(source, top)
            source.check_id_map(top)
            clone = _writable_clone(source, top)
            with Fds() as opened:
                try:
                    with GhostBuilder(clone, fds, same) as builder:
                        path = _make_root(source, ghosts, builder)
                        tree = opened.add(_clone_root(source, top, path))
                        source.set_flags(tree, 0, kernel.MOUNT_ATTR_RDONLY)
                        made = [
                            (ghost, opened.add(builder.make(ghost, tree, path)))
                            for ghost in sorted(ghosts, key=depth)
                        ]
                    _give_attributes(source, tree, made, fds)
                except OSError as error:
                    raise DetachedError(
                        f"can't make the deleted files of {source.where} again: {why(error)}"
                    ) from error
                opened.release()
            return Realised(Fd(tree), same, [(ghost, Fd(fd)) for ghost, fd in made])


def _make_root(source: Source, ghosts: list[Ghost], builder: GhostBuilder) -> bytes:
    """Return the path of the mount's root in its source; a deleted one is made there first."""
    if not source.mount.root_deleted:
        return source.path
    held = [ghost for ghost in ghosts if ghost.file and ghost.file.path == paths.ROOT]
    return builder.make_root(source.path, source.mount.root_type, held[0] if held else None)


def _clone_root(source: Source, top: int, path: bytes) -> Fd:
    with source.open_root(top, path) as root:
        source.check_type(root)
        return source.clone(root)


def _give_attributes(
    source: Source, tree: int, made: list[tuple[Ghost, int]], fds: ProcessFds
) -> None:
    """Give the ghosts and the mount what they had, when all ghosts are made."""
    mount = source.mount
    if needs_id_map(mount):
        # Only now: whoever makes a file needs a place in the id-map of its mount.
        give_owners(made, fds.proc, mount.uid_map, mount.gid_map)
        source.set_flags(tree, kernel.MOUNT_ATTR_IDMAP, 0, fds.userns)
    give_attributes(made, fds.proc)
    set_attributes(source, tree)


def _has_same_root(source: Source, top: int) -> bool:
    """Tell whether the mount's root is the dumped one; of a deleted one nothing can be told."""
    if source.mount.root_deleted or source.mount.root_handle is None:
        return True
    with source.open_root(top, source.path) as root:
        return source.is_same_root(root)


def _writable_clone(source: Source, top: int) -> Fd:
    """Clone the whole bind source, to work in."""
    tree = source.clone(top)
    try:
        source.set_flags(tree, 0, kernel.MOUNT_ATTR_RDONLY)
    except DetachedError:
        tree.close()
        raise
    return tree
