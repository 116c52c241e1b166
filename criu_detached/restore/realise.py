# SPDX-License-Identifier: GPL-2.0-only
"""From a mount record to a mount: a tree fd whose mount is in no one's way."""

from __future__ import annotations

import os

from criu_detached import kernel, paths
from criu_detached.errors import DetachedError, quote, why
from criu_detached.filesystems.attributes import attributes_to_change
from criu_detached.images.records import RECREATED, REMOUNT, SUPPLIED, Ghost, Mount
from criu_detached.restore.source import check_id_map, check_superblock, check_type, is_same_root

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from criu_detached.images.datafile import DataFileReader

    WithGhosts = Callable[[Mount, list[Ghost], int, str, "Means"], "Realised"]


class Realised:
    """A detached mount that is there again."""

    __slots__ = ("ghosts", "keeps_inodes", "tree")

    def __init__(self, tree: int, keeps_inodes: bool) -> None:
        self.tree = tree  # a tree fd, the caller's
        self.keeps_inodes = keeps_inodes  # superblock and root are the dumped ones
        self.ghosts: list[tuple[Ghost, int]] = []  # with an fd each, the caller's


class Means:
    """What a mount is realised with: it differs between CRIU's process and a task."""

    __slots__ = (
        "clone",
        "fresh",
        "in_userns",
        "namespace_root",
        "proc",
        "reader",
        "same_boot",
        "supplied",
        "tops",
        "userns_fd",
        "with_ghosts",
    )

    def __init__(
        self,
        namespace_root: int,
        same_boot: bool,
        userns_fd: int = -1,
        clone: Callable[[int], int] = kernel.clone_mount,
        proc: int = -1,
        reader: DataFileReader | None = None,
    ) -> None:
        """Gather it.

        Args:
            namespace_root: fd of the root that the source's mountpoint is reached from.
            same_boot: the dump was made on this very boot of the system.
            userns_fd: a user namespace with the mount's id-maps, or -1.
            clone: makes a tree fd from an fd of the source's directory.
            proc: fd of a procfs that shows this task its fds; for ghosts.
            reader: of the data file; for ghosts with a content.
        """
        self.namespace_root = namespace_root
        self.same_boot = same_boot
        self.userns_fd = userns_fd
        self.clone = clone
        self.proc = proc
        self.reader = reader
        self.with_ghosts: WithGhosts | None = None  # of with_ghosts.py, if there is a ghost
        self.in_userns = False  # this task has another user namespace than criu
        self.supplied: dict[int, int] = {}  # root that the user has supplied, by mount id
        self.tops: dict[int, int] = {}  # root of a filesystem that is mounted or made, by its id
        # Those whose superblock is a new one, and whether inode numbers are as they were.
        self.fresh: dict[int, bool] = {}


def realise(mount: Mount, ghosts: list[Ghost], means: Means) -> Realised:
    """Clone a mount from its bind source, make its deleted files, give it its attributes.

    Files opened beneath the tree fd keep the mount when the tree fd is closed; the mount is
    then detached.

    Args:
        mount: its record, checked.
        ghosts: the records of its deleted files, checked.
        means: what it takes.

    Raises:
        DetachedError: the source is gone, is another one, or cannot be cloned, or a deleted
            file cannot be made.
    """
    source = mount.bind_source
    assert source is not None  # check_mount
    where = quote(paths.join(source.mountpoint.rstrip(b"/") or b"/", source.path))
    if mount.origin == SUPPLIED:
        where += f" (supplied for mount {mount.mnt_id})"
    top = _open_top(mount, where, means)
    try:
        if ghosts or mount.root_deleted:
            assert means.with_ghosts is not None
            return means.with_ghosts(mount, ghosts, top, where, means)
        root = open_root(top, source.path, where)
        try:
            check_type(mount, root, where)
            same = check_superblock(mount, root, where, means)
            same = same and is_same_root(mount, root, where)
            check_id_map(mount, root, where, means)
            realised = Realised(clone(root, where, means), same)
        finally:
            os.close(root)
        try:
            set_attributes(mount, realised.tree, where, means.userns_fd)
        except DetachedError:
            let_go(realised)
            raise
        return realised
    finally:
        os.close(top)


def _open_top(mount: Mount, where: str, means: Means) -> int:
    """The root of what the mount is cloned from."""
    source = mount.bind_source
    assert source is not None
    if mount.origin in (REMOUNT, RECREATED):
        return os.dup(means.tops[mount.filesystem])
    if mount.origin == SUPPLIED:
        return os.dup(means.supplied[mount.mnt_id])
    try:
        return paths.open_mountpoint(means.namespace_root, source.mountpoint)
    except OSError as error:
        raise _cannot_open(where, error) from error


def let_go(realised: Realised) -> None:
    """Close all fds of a mount that is not to be used."""
    for fd in (realised.tree, *(fd for _, fd in realised.ghosts)):
        if fd >= 0:
            os.close(fd)


def attach(mount: Mount, tree: int, parent: int, move: Callable[[int, int], None]) -> None:
    """Attach a mount of an anonymous tree on its parent.

    Args:
        mount: its record.
        tree: its tree fd.
        parent: the tree fd of its parent.
        move: attaches one to an open directory or file.

    Raises:
        DetachedError: its place is gone, or the kernel refuses it.
    """
    try:
        flags = kernel.O_PATH | kernel.O_NOFOLLOW
        target, _ = kernel.open_beneath(parent, mount.place, flags)
        try:
            move(tree, target)
        finally:
            os.close(target)
    except OSError as error:
        raise DetachedError(
            f"can't attach mount {mount.mnt_id} at {quote(mount.place)} in its anonymous tree:"
            f" {error}; Linux 6.15 or newer is needed"
        ) from error


def _cannot_open(where: str, error: OSError) -> DetachedError:
    return DetachedError(
        f"the bind source {where} cannot be opened ({why(error)}): mount its filesystem there again"
    )


def open_root(top: int, path: bytes, where: str) -> int:
    """Open a mount's root beneath that of its source.

    Args:
        top: the source's root.
        path: beneath it.
        where: the source, for messages.

    Raises:
        DetachedError: it is not there.
    """
    try:
        return paths.open_at(top, path)
    except OSError as error:
        raise _cannot_open(where, error) from error


def clone(root: int, where: str, means: Means) -> int:
    """Clone a mount; the tree fd is the caller's.

    Args:
        root: fd of what is to be the new mount's root.
        where: the source, for messages.
        means: says how.

    Raises:
        DetachedError: the kernel refuses it.
    """
    try:
        return means.clone(root)
    except OSError as error:
        raise DetachedError(f"can't clone the bind source {where}: {error}") from error


def set_attributes(mount: Mount, tree: int, where: str, userns_fd: int = -1) -> None:
    """Give a new mount its attributes; without a user namespace it has its id-map.

    Args:
        mount: its record.
        tree: its tree fd.
        where: the source, for messages.
        userns_fd: with its id-maps, or -1.

    Raises:
        DetachedError: the kernel refuses them.
    """
    attr_set, attr_clr = attributes_to_change(mount)
    if userns_fd < 0:
        attr_set &= ~kernel.MOUNT_ATTR_IDMAP
    propagation = kernel.MS_PRIVATE if mount.private else 0
    set_flags(tree, attr_set, attr_clr, where, userns_fd, propagation)


def set_flags(
    tree: int, attr_set: int, attr_clr: int, where: str, userns_fd: int = -1, propagation: int = 0
) -> None:
    """Call mount_setattr(2) on a clone.

    Args:
        tree: its tree fd.
        attr_set: MOUNT_ATTR_*.
        attr_clr: likewise.
        where: the source, for messages.
        userns_fd: for MOUNT_ATTR_IDMAP.
        propagation: MS_*; 0 leaves it.

    Raises:
        DetachedError: the kernel refuses it.
    """
    try:
        kernel.mount_setattr(tree, attr_set, attr_clr, userns_fd, propagation)
    except OSError as error:
        raise DetachedError(
            f"can't give the clone of {where} the attributes {attr_set:#x}: {why(error)}"
        ) from error
