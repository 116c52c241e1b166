# SPDX-License-Identifier: GPL-2.0-only
"""Is a bind source the one of the dump?"""

from __future__ import annotations

import os
import stat

from criu_detached import kernel
from criu_detached.criu import log
from criu_detached.errors import DetachedError, quote
from criu_detached.filesystems.idmap import format_id_map
from criu_detached.filesystems.superblock import is_same, superblock_of
from criu_detached.filesystems.types import VOLATILE_INODES, by_magic
from criu_detached.images.records import BIND_SOURCE, RECREATED, REMOUNT, SUPPLIED, Mount
from criu_detached.kernel import statmount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.restore.realise import Means

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


def check_type(mount: Mount, root: int, where: str) -> None:
    """Refuse a root of another type.

    Args:
        mount: the record.
        root: fd of the source's directory or file.
        where: the source, for messages.

    Raises:
        DetachedError: it is.
    """
    mode = kernel.fstat(root).mode
    if stat.S_IFMT(mode) != mount.root_type:
        raise DetachedError(
            f"the bind source {where} is {type_name(mode)}, it was {type_name(mount.root_type)}"
        )


def check_superblock(mount: Mount, root: int, where: str, means: Means) -> bool:
    """Refuse another filesystem.

    Args:
        mount: the record.
        root: fd of something on it.
        where: the source, for messages.
        means: what the mount is realised with.

    Returns:
        Whether inode numbers are those of the dump.

    Raises:
        DetachedError: it is another one.
    """
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
        return not by_magic(found.magic).has(VOLATILE_INODES)
    same = is_same(recorded, found, same_boot)
    # A restored namespace may have its filesystems made anew; the host's are still there.
    if not same and same_boot and not mount.bind_source.in_namespace and not chosen:
        raise DetachedError(
            f"the bind source {where} is on another {quote(recorded.fs_type)} filesystem than at"
            ' the dump: mount the right one there, or tell by the setting "map" that it is this one'
        )
    if not same:
        log.warn(
            f"the bind source {where} is on another filesystem"
            + (f" (type {found.magic:#x})" if found.magic != recorded.magic else "")
            + f" than at the dump ({quote(recorded.fs_type)}): files are found by their paths, and"
            " their inodes are not compared"
        )
    return same and not by_magic(found.magic).has(VOLATILE_INODES)


def is_same_root(mount: Mount, root: int, where: str) -> bool:
    """Tell whether the root is the dumped directory, or one that was made anew with all in it.

    So an engine restores a volume from an archive, and so is a copy that the user supplies.

    Args:
        mount: the record.
        root: fd of the mount's root, whose filesystem is the dumped one.
        where: the source, for messages.
    """
    recorded = mount.root_handle
    if recorded is None or mount.origin not in (BIND_SOURCE, SUPPLIED):
        return True
    try:
        same = kernel.name_to_handle(root) == (recorded.type, recorded.bytes)
    except OSError:
        return True
    if not same:
        log.warn(
            f"the bind source {where} is another directory than at the dump: files are found by"
            " their paths, and their inodes are not compared"
        )
    return same


def check_id_map(mount: Mount, root: int, where: str, means: Means) -> None:
    """Refuse another id-map of the source than the dump reckoned with: the clone has it.

    Args:
        mount: the record.
        root: fd of the source's directory or file.
        where: the source, for messages.
        means: what the mount is realised with.

    Raises:
        DetachedError: it is another one, or the kernel does not tell.
    """
    source = mount.bind_source
    assert source is not None  # check_mount
    wanted = (mount.uid_map, mount.gid_map) if source.id_mapped else ([], [])
    if source.id_mapped and means.in_userns:
        uid_map, gid_map = wanted
        wanted = _seen_here(uid_map, means.proc, "uid"), _seen_here(gid_map, means.proc, "gid")
    try:
        # Before Linux 7.0 the dump knows the id-maps of anonymous mounts alone.
        tell = statmount.attached_id_maps if mount.anonymous else statmount.id_maps
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
    format_id_map(lines)
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
