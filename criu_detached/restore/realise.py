# SPDX-License-Identifier: GPL-2.0-only
"""From a mount record to a mount: a tree fd whose mount is in no one's way."""

from __future__ import annotations

import os
import stat

from criu_detached import kernel, log, paths
from criu_detached.contents import ContentReader
from criu_detached.errors import DetachedError, quote, reason
from criu_detached.records import BIND_SOURCE, RECREATED, REMOUNT, SUPPLIED, Ghost, Mount
from criu_detached.restore.ghosts import Workshop, depth, give_attributes, give_owners
from criu_detached.superblock import is_same, superblock_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from criu_detached.recordfile import Records

_KNOWN_ATTR = (
    kernel.MOUNT_ATTR_RDONLY
    | kernel.MOUNT_ATTR_NOSUID
    | kernel.MOUNT_ATTR_NODEV
    | kernel.MOUNT_ATTR_NOEXEC
    | kernel.MOUNT_ATTR__ATIME
    | kernel.MOUNT_ATTR_NODIRATIME
    | kernel.MOUNT_ATTR_NOSYMFOLLOW
)
_ORIGINS = (BIND_SOURCE, REMOUNT, RECREATED, SUPPLIED)
_MAX_MAP = 1 << 16  # bytes; the kernel takes 340 lines
_TYPE_NAMES = {
    stat.S_IFDIR: "a directory",
    stat.S_IFREG: "a regular file",
    stat.S_IFLNK: "a symlink",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFSOCK: "a socket",
}


def type_name(mode: int) -> str:
    """Name the file type of a mode, for messages."""
    return _TYPE_NAMES.get(stat.S_IFMT(mode), "a file of an unknown type")


def check_mount(mount: Mount) -> None:
    """Refuse a record that no dump writes.

    Raises:
        DetachedError: of an unknown origin, or with flags that are no mount attributes.
    """
    source = mount.bind_source
    if mount.origin not in _ORIGINS or source is None or mount.superblock is None:
        raise DetachedError(
            f"mount {mount.mnt_id} has the unknown origin {mount.origin}:"
            " restore with the version of criu-detached that dumped it"
        )
    if mount.attr & ~_KNOWN_ATTR:
        raise DetachedError(f"mount {mount.mnt_id} has unknown attributes {mount.attr:#x}")
    for name in (source.mountpoint, source.path, mount.place):
        if b"\0" in name or b".." in name.split(b"/"):
            raise DetachedError(f"mount {mount.mnt_id} has the invalid path {quote(name)}")
    if mount.root_deleted and source.path == paths.ROOT:
        raise DetachedError(f"mount {mount.mnt_id} has a deleted root, and is all of its source")


def check_filesystems(records: Records) -> None:
    """Refuse records that no dump writes; raises DetachedError."""
    for number, filesystem in records.filesystems.items():
        if filesystem.superblock is None:
            raise DetachedError(f"filesystem {number} has no type: are the images damaged?")
    for mount in records.mounts.values():
        if mount.origin in (REMOUNT, RECREATED) and mount.filesystem not in records.filesystems:
            raise DetachedError(
                f"mount {mount.mnt_id} is of a filesystem that is not there: are the images"
                " damaged?"
            )


class Realised:
    """A detached mount that is there again."""

    __slots__ = ("ghosts", "keeps_inodes", "tree")

    def __init__(self, tree: int, keeps_inodes: bool) -> None:
        self.tree = tree  # a tree fd, the caller's
        self.keeps_inodes = keeps_inodes  # the superblock is the dumped one
        self.ghosts: list[tuple[Ghost, int]] = []  # with an O_PATH fd each, the caller's


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
    )

    def __init__(
        self,
        namespace_root: int,
        same_boot: bool,
        userns_fd: int = -1,
        clone: Callable[[int], int] = kernel.clone_mount,
        proc: int = -1,
        reader: ContentReader | None = None,
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
            return _realise_with_ghosts(mount, ghosts, top, where, means)
        root = _open_root(top, source.path, where)
        try:
            same = _check_source(mount, root, where, means)
            _check_id_map(mount, root, where, means)
            realised = Realised(_clone(root, where, means), same)
        finally:
            os.close(root)
        try:
            _set_attributes(mount, realised.tree, where, means.userns_fd)
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


def _realise_with_ghosts(
    mount: Mount, ghosts: list[Ghost], top: int, where: str, means: Means
) -> Realised:
    """As realise: the mount is given its attributes when its files are made."""
    source = mount.bind_source
    assert source is not None
    same = _check_superblock(mount, top, where, means)
    _check_id_map(mount, top, where, means)
    workshop = Workshop(_writable_clone(top, where, means), means.proc, means.reader, same)
    realised = Realised(-1, same)
    try:
        try:
            path = source.path
            if mount.root_deleted:
                held = [ghost for ghost in ghosts if ghost.file and ghost.file.path == paths.ROOT]
                path = workshop.make_root(path, mount.root_type, held[0] if held else None)
            root = _open_root(top, path, where)
            try:
                _check_type(mount, root, where)
                realised.tree = _clone(root, where, means)
            finally:
                os.close(root)
            _setattr(realised.tree, 0, kernel.MOUNT_ATTR_RDONLY, where)
            for ghost in sorted(ghosts, key=depth):
                realised.ghosts.append((ghost, workshop.make(ghost, realised.tree, path)))
        finally:
            workshop.close()
        if needs_id_map(mount):
            # Only now: whoever makes a file needs a place in the id-map of its mount.
            give_owners(realised.ghosts, means.proc, mount.uid_map, mount.gid_map)
            _setattr(realised.tree, kernel.MOUNT_ATTR_IDMAP, 0, where, means.userns_fd)
        give_attributes(realised.ghosts, means.proc)
        _set_attributes(mount, realised.tree, where)
        return realised
    except OSError as error:
        let_go(realised)
        raise DetachedError(f"can't make the deleted files of {where} again: {error}") from error
    except DetachedError:
        let_go(realised)
        raise


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
        f"the bind source {where} cannot be opened ({reason(error.errno or 0)}):"
        " mount its filesystem there again"
    )


def _open_root(top: int, path: bytes, where: str) -> int:
    try:
        return paths.open_at(top, path)
    except OSError as error:
        raise _cannot_open(where, error) from error


def _check_source(mount: Mount, root: int, where: str, means: Means) -> bool:
    """Refuse another source; tell whether inode numbers are those of the dump."""
    _check_type(mount, root, where)
    return _check_superblock(mount, root, where, means)


def _check_type(mount: Mount, root: int, where: str) -> None:
    mode = kernel.fstat(root).mode
    if stat.S_IFMT(mode) != mount.root_type:
        raise DetachedError(
            f"the bind source {where} is {type_name(mode)}, it was {type_name(mount.root_type)}"
        )


def _check_superblock(mount: Mount, root: int, where: str, means: Means) -> bool:
    """Refuse another filesystem; tell whether inode numbers are those of the dump."""
    if mount.origin == RECREATED:
        return False
    if mount.filesystem in means.fresh:
        return means.fresh[mount.filesystem]
    same_boot = means.same_boot
    recorded = mount.superblock
    assert recorded is not None and mount.bind_source is not None  # check_mount
    found = superblock_of(root, recorded.fs_type)
    chosen = mount.origin == SUPPLIED  # by the user, who may know better
    if not chosen and found.magic != recorded.magic:
        raise DetachedError(
            f"the bind source {where} is on another filesystem (type {found.magic:#x}), it was on"
            f" {quote(recorded.fs_type)} ({recorded.magic:#x}): mount the right one there"
        )
    if mount.origin == REMOUNT:  # it is known by what it lies on
        return found.magic not in kernel.VOLATILE_INODES
    same = is_same(recorded, found, same_boot)
    # A restored namespace may have its filesystems made anew; the host's are still there.
    if not same and same_boot and not mount.bind_source.in_namespace and not chosen:
        raise DetachedError(
            f"the bind source {where} is on another {quote(recorded.fs_type)} filesystem than at"
            " the dump: mount the right one there"
        )
    if not same:
        log.warn(
            f"the bind source {where} is on another filesystem"
            + (f" (type {found.magic:#x})" if found.magic != recorded.magic else "")
            + f" than at the dump ({quote(recorded.fs_type)}): files are found by their paths, and"
            " their inodes are not compared"
        )
    return same and found.magic not in kernel.VOLATILE_INODES


def _check_id_map(mount: Mount, root: int, where: str, means: Means) -> None:
    """The clone has the source's id-map: it must be the one that the dump reckoned with."""
    source = mount.bind_source
    assert source is not None  # check_mount
    wanted = (mount.uid_map, mount.gid_map) if source.id_mapped else ([], [])
    if source.id_mapped and means.in_userns:
        uid_map, gid_map = wanted
        wanted = _seen_here(uid_map, means.proc, "uid"), _seen_here(gid_map, means.proc, "gid")
    try:
        # Before Linux 7.0 the dump knows the id-maps of anonymous mounts alone.
        tell = kernel.attached_id_maps if mount.anonymous else kernel.id_maps
        found = tell(root)
    except OSError as error:
        if source.id_mapped:
            raise DetachedError(
                f"the bind source {where} was id-mapped; whether it is, Linux 7.0 or newer tells"
            ) from error
        return
    if found != wanted:
        raise DetachedError(f"the bind source {where} has another id-map than at the dump")


def _seen_here(lines: list[bytes], proc: int, kind: str) -> list[bytes]:
    """An id-map of CRIU's user namespace, as statmount(2) shows it in this task's.

    Args:
        lines: the id-map.
        proc: fd of a procfs that shows this task.
        kind: "uid" or "gid".
    """
    id_map_text(lines)
    fd = os.open(f"self/{kind}_map", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
    try:
        own = os.read(fd, _MAX_MAP).split(b"\n")
    finally:
        os.close(fd)
    return translated(lines, [line for line in own if line])


def translated(lines: list[bytes], own: list[bytes]) -> list[bytes]:
    """What is left of an id-map in a user namespace: lines that it has all ids of.

    Args:
        lines: the id-map, checked: first id, id outside, how many.
        own: that of the user namespace, likewise.
    """
    found = []
    for line in lines:
        first, lower, count = (int(text) for text in line.split())
        for inside, outside, size in (map(int, each.split()) for each in own):
            if outside <= lower and lower + count <= outside + size:
                found.append(b"%d %d %d" % (first, lower - outside + inside, count))
    return found


def mount_attributes(mount: Mount) -> tuple[int, int]:
    """What mount_setattr(2) is to set and to clear on a clone of the source."""
    attr_set = mount.attr
    if needs_id_map(mount):
        attr_set |= kernel.MOUNT_ATTR_IDMAP
    # The kernel wants the whole field cleared when the access time mode is set.
    return attr_set, _KNOWN_ATTR & ~mount.attr | kernel.MOUNT_ATTR__ATIME


def needs_id_map(mount: Mount) -> bool:
    """Tell whether a clone of the source is to be given an id-map."""
    source = mount.bind_source
    return bool(mount.uid_map or mount.gid_map) and not (source and source.id_mapped)


def user_namespace(mount: Mount) -> int:
    """Make the user namespace for a mount's id-map; it takes a fork, so not in a task.

    Returns:
        An fd, the caller's; -1 when the mount needs none.

    Raises:
        DetachedError: the id-map of the record is none.
        OSError: the kernel refuses it.
    """
    if not needs_id_map(mount):
        return -1
    return kernel.user_namespace(id_map_text(mount.uid_map), id_map_text(mount.gid_map))


def _clone(root: int, where: str, means: Means) -> int:
    try:
        return means.clone(root)
    except OSError as error:
        raise DetachedError(f"can't clone the bind source {where}: {error}") from error


def _writable_clone(top: int, where: str, means: Means) -> int:
    """A clone of the whole bind source to work in."""
    tree = _clone(top, where, means)
    try:
        _setattr(tree, 0, kernel.MOUNT_ATTR_RDONLY, where)
    except DetachedError:
        os.close(tree)
        raise
    return tree


def _set_attributes(mount: Mount, tree: int, where: str, userns_fd: int = -1) -> None:
    """Give a new mount its attributes; without a user namespace it has its id-map."""
    attr_set, attr_clr = mount_attributes(mount)
    if userns_fd < 0:
        attr_set &= ~kernel.MOUNT_ATTR_IDMAP
    propagation = kernel.MS_PRIVATE if mount.private else 0
    _setattr(tree, attr_set, attr_clr, where, userns_fd, propagation)


def _setattr(
    tree: int, attr_set: int, attr_clr: int, where: str, userns_fd: int = -1, propagation: int = 0
) -> None:
    try:
        kernel.mount_setattr(tree, attr_set, attr_clr, userns_fd, propagation)
    except OSError as error:
        raise DetachedError(
            f"can't give the clone of {where} the attributes {attr_set:#x}:"
            f" {reason(error.errno or 0)}"
        ) from error


def id_map_text(lines: list[bytes]) -> bytes:
    """Turn a record's id-map into what /proc/PID/uid_map takes.

    Raises:
        DetachedError: it is none.
    """
    for line in lines:
        numbers = line.split()
        if len(numbers) != 3 or not all(map(_is_id, numbers)):
            raise DetachedError(f"the id-map line {quote(line)} is invalid")
    return b"".join(line + b"\n" for line in lines)


def _is_id(text: bytes) -> bool:
    """Ten digits hold 32 bits; int() refuses thousands of them with another exception."""
    return text.isdigit() and len(text) <= 10 and int(text) < 1 << 32
