# SPDX-License-Identifier: GPL-2.0-only
"""From an open file to the record of its detached mount."""

from __future__ import annotations

import errno
import os
import stat

from criu_detached import kernel, paths
from criu_detached.dump.describe import roots
from criu_detached.dump.describe.sources import Source
from criu_detached.dump.observe.classify import Kind
from criu_detached.dump.open_file import handle_of
from criu_detached.errors import DetachedError, quote, reason
from criu_detached.filesystems.attributes import attributes_to_change, make_user_namespace
from criu_detached.filesystems.superblock import superblock_of
from criu_detached.images.records import BIND_SOURCE, REMOUNT, BindSource, Mount
from criu_detached.kernel import FileStat, namespaces, statmount
from criu_detached.kernel.mounts import mount_attr
from criu_detached.paths import Name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from criu_detached.dump.filesystems.memory import Memory
    from criu_detached.dump.filesystems.same_file import Twins

    Candidates = Callable[[int, bytes | None, int, bytes | None], Iterator[Source]]

# statfs f_flags (ST_* of linux/statfs.h) that are mount attributes
_FROM_STATFS = {
    os.ST_RDONLY: kernel.MOUNT_ATTR_RDONLY,
    os.ST_NOSUID: kernel.MOUNT_ATTR_NOSUID,
    os.ST_NODEV: kernel.MOUNT_ATTR_NODEV,
    os.ST_NOEXEC: kernel.MOUNT_ATTR_NOEXEC,
    os.ST_NOATIME: kernel.MOUNT_ATTR_NOATIME,
    os.ST_NODIRATIME: kernel.MOUNT_ATTR_NODIRATIME,
    0x2000: kernel.MOUNT_ATTR_NOSYMFOLLOW,  # ST_NOSYMFOLLOW, Linux 5.10
}


class DetachedMount:
    """A detached mount of the dump: its record, and how its bind source shows it."""

    def __init__(
        self,
        record: Mount,
        root: int,
        source: int,
        read_only: bool,
        maps_known: bool = True,
        twins: Twins | None = None,
    ) -> None:
        # O_PATH fds, kept open for the checks of the files on the mount
        self.record = record
        self.root = root  # of the detached mount; -1: it is deleted
        self.source = source  # of the bind source
        self.read_only = read_only  # the superblock, not the mount
        self.maps_known = maps_known  # the kernel told the id-map, or that there is none
        self.twins = twins  # of the bind source
        self.memory: Memory | None = None  # the filesystem, if it is in memory and has no source

    def seen(self, fd: int, path: bytes, facts: FileStat) -> FileStat:
        """Facts that a file has in the bind source, if it is there; raises OSError.

        Args:
            fd: the file.
            path: where it should be, beneath the mount's root.
            facts: its own.
        """
        return self.twins.facts(self.root, path, fd, facts) if self.twins else facts

    def is_held_whole(self, root: int) -> None:
        """Take note that a task reaches all of it.

        Args:
            root: its root, or a directory of it; nothing is mounted on what is seen from there.
        """

    def name_of(self, fd: int, link: bytes, facts: FileStat) -> Name:
        """Where a file is: the restore will open the path beneath the source.

        Args:
            fd: the file.
            link: its path from the mount's root, as its link shows it.
            facts: of the file.

        Raises:
            DetachedError: another file is there, and the link does not say that it is deleted.
        """
        refusal = ""
        for name in paths.readings(link, facts):
            if name.deleted:
                return name
            refusal = "its mount's root is deleted, but it is not: was it moved away?"
            if self.root < 0:
                continue
            try:
                found = paths.facts_at(self.root, name.path)
                wanted = self.seen(fd, name.path, facts)
                if (found.dev, found.ino) == (wanted.dev, wanted.ino):
                    return name
                number = 0
            except OSError as error:
                number = error.errno or 0
            refusal = self._not_in_source(name.path, number)
        raise DetachedError(refusal)

    def _not_in_source(self, path: bytes, number: int) -> str:
        source = self.record.bind_source
        assert source is not None
        where = quote(paths.join(source.mountpoint, paths.join(source.path, path)))
        if number == errno.EXDEV:
            return f"another mount covers {where}, its path in the bind source: unmount that"
        if number:
            return f"{where}, its path in the bind source, cannot be reached: {reason(number)}"
        return f"{where}, its path in the bind source, is another file: was it renamed or replaced?"


def describe_mount(
    fd: int, link: bytes, facts: FileStat, kind: Kind, candidates: Candidates
) -> DetachedMount:
    """Describe the detached mount of an open file.

    Args:
        fd: the file.
        link: its path from the mount's root, as its link shows it.
        facts: of the file.
        kind: what the classifier said.
        candidates: gives the mounts that may be its bind source, opened, for a device, a
            filesystem's name (where known), its magic number and the root (where known).

    Raises:
        DetachedError: no bind source shows the mount's root, or not as it is there.
    """
    refusals = []
    for name in paths.readings(link, facts):
        mount, refusal = _find_source(fd, name, facts, kind, candidates)
        if mount is not None:
            return mount
        refusals.append(refusal)
    raise DetachedError(refusals[-1])


def _find_source(
    fd: int, name: Name, facts: FileStat, kind: Kind, candidates: Candidates
) -> tuple[DetachedMount | None, str]:
    """Look for a bind source that fits a reading of the link; else say why there is none."""
    magic = kernel.fstatfs(fd).magic
    known = kind.statmount
    dev = known.sb_dev if known else facts.dev
    fs_type = known.fs_type if known else None
    refusal = _no_source(name, kind)
    wanted = known.root_path if known else None
    for source in candidates(dev, fs_type, magic, wanted):
        with source:
            if known and name.deleted and source.info.dev != dev and not source.twins:
                continue  # no file to compare will tell one such filesystem from another
            inside = _root_in_source(fd, name, facts, kind, source)
            if inside is None or _has_other_ids(kind, source):
                continue
            mount, why = _mount_from(fd, name, facts, kind, source, inside)
            if mount is not None:
                return mount, ""
            refusal = why or refusal
    return None, refusal


def _mount_from(
    fd: int, name: Name, facts: FileStat, kind: Kind, source: Source, inside: bytes
) -> tuple[DetachedMount | None, str]:
    """Describe the mount as one of a source, if that shows the file as the mount does.

    Args:
        fd: the file.
        name: its path from the mount's root.
        facts: of the file.
        kind: what the classifier said.
        source: the source; it stays the caller's.
        inside: where the mount's root is, beneath the source's.

    Returns:
        The mount, or none and, where the source shows the file, why it would not do.
    """
    root = _open_root(source, inside, name, kind)
    if root is None:
        return None, ""
    mount, refusal = None, ""
    try:
        if root < 0:
            fits = inside != paths.ROOT  # else the source's own root is another one
        else:
            fits = name.deleted or _shows(source, root, name.path, fd, facts)
        if fits:
            record = _record(fd, name, facts, kind, source, inside, root)
            refusal = _refusal_by(source, source.fd if root < 0 else root, record)
        if fits and not refusal:
            read_only = b"ro" in source.info.super_options
            maps_known = kind.statmount is not None
            kept = os.dup(source.fd)
            mount = DetachedMount(record, root, kept, read_only, maps_known, source.twins)
        return mount, refusal
    finally:
        if mount is None and root >= 0:
            os.close(root)


def _refusal_by(source: Source, root: int, record: Mount) -> str:
    """Why a bind source would not do for the restore; empty: it would."""
    if source.filesystem is not None:
        return ""  # it was mounted for a trial
    try:
        _rehearse(record, root, source)
    except OSError as error:
        return (
            f"its bind source {quote(source.info.mountpoint)} would not do for the restore"
            f" ({error}): is it unbindable, or locked by a user namespace, or has criu no"
            " CAP_SYS_ADMIN?"
        )
    return ""


def _open_root(source: Source, inside: bytes, name: Name, kind: Kind) -> int | None:
    """The mount's root in the source; -1: it is deleted; None: not to be seen there."""
    if kind.statmount:
        deleted = kind.statmount.root_deleted
    else:
        deleted = name.deleted and name.path == paths.ROOT
    if deleted:
        return -1 if name.deleted else None
    try:
        return paths.open_at(source.fd, inside)
    except OSError as error:
        # Before 7.0 a deleted file alone does not tell whether the root is deleted too.
        gone = error.errno in (errno.ENOENT, errno.ENOTDIR)
        return -1 if gone and name.deleted and not kind.statmount else None


def _rehearse(record: Mount, root: int, source: Source) -> None:
    """Realise the mount for a trial, while the tasks are still alive; raises OSError.

    It is made in no namespace's tree, and gone at once.
    """
    attr_set, attr_clr = attributes_to_change(record)
    userns = make_user_namespace(record)
    try:
        if not source.pid:
            tree = kernel.clone_mount(root)
            try:
                kernel.mount_setattr(tree, attr_set, attr_clr, userns)
            finally:
                os.close(tree)
            return
        ns_fd = os.open(f"/proc/{source.pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        user_ns_fd = _user_namespace_of(source.pid)
        try:
            attr = mount_attr(attr_set, attr_clr, userns)
            namespaces.dry_run_clone(ns_fd, user_ns_fd, root, attr)
        finally:
            for used in (ns_fd, user_ns_fd):
                if used >= 0:
                    os.close(used)
    finally:
        if userns >= 0:
            os.close(userns)


def _user_namespace_of(pid: int) -> int:
    """An fd of a process's user namespace; -1 when that is this process's own."""
    path = f"/proc/{pid}/ns/user"
    if os.stat(path).st_ino == os.stat("/proc/self/ns/user").st_ino:
        return -1
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _root_in_source(
    fd: int, name: Name, facts: FileStat, kind: Kind, source: Source
) -> bytes | None:
    if kind.statmount:
        root = kind.statmount.root_path
        return paths.below(root, source.info.root)
    if source.twins:
        # Files of such filesystems are nowhere else, and there is no inode to search for.
        return paths.ROOT if _shows(source, source.fd, name.path, fd, facts) else None
    return roots.find_root(fd, name, facts, source)


def _has_other_ids(kind: Kind, source: Source) -> bool:
    """A clone keeps the source's id-map, and only a mount without one can be given another."""
    if not kind.statmount:
        return False
    maps = _id_maps(source)
    return maps != ([], []) and maps != (kind.statmount.uid_map, kind.statmount.gid_map)


def _id_maps(source: Source) -> tuple[list[bytes], list[bytes]]:
    """The id-maps of a source; what is mounted for a trial has none."""
    if source.filesystem is not None:
        return [], []
    if not source.pid:
        return statmount.attached_id_maps(source.fd)
    ns_fd = os.open(f"/proc/{source.pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return statmount.attached_id_maps(source.fd, namespaces.mount_ns_id(ns_fd))
    finally:
        os.close(ns_fd)


def _shows(source: Source, root: int, path: bytes, fd: int, facts: FileStat) -> bool:
    try:
        found = paths.facts_at(root, path)
        if source.twins:
            facts = source.twins.facts(root, path, fd, facts)
    except OSError:
        return False
    return (found.dev, found.ino) == (facts.dev, facts.ino)


def _record(
    fd: int,
    name: Name,
    facts: FileStat,
    kind: Kind,
    source: Source,
    inside: bytes,
    root: int,
) -> Mount:
    known = kind.statmount
    base = source.info.root.rstrip(b"/")
    root_path = base + b"/" + inside if inside != paths.ROOT else base or b"/"
    if root >= 0:
        root_type = stat.S_IFMT(kernel.fstat(root).mode)
    else:
        root_type = stat.S_IFMT(facts.mode) if name.path == paths.ROOT else stat.S_IFDIR
    tells_root = source.filesystem is None and stat.S_ISDIR(root_type) and root >= 0
    return Mount(
        mnt_id=facts.mnt_id,
        origin=REMOUNT if source.filesystem else BIND_SOURCE,
        filesystem=source.filesystem.id if source.filesystem else 0,
        root=known.root_path if known else root_path,
        root_type=root_type,
        attr=mount_attributes_of(fd, kind),
        superblock=superblock_of(source.fd if root < 0 else root, source.info.fs_type),
        bind_source=BindSource(
            mnt_id=source.info.mnt_id,
            in_namespace=int(source.in_namespace),
            mountpoint=source.info.mountpoint,
            path=inside,
            id_mapped=int(known is not None and _id_maps(source) != ([], [])),
        ),
        uid_map=known.uid_map if known else [],
        gid_map=known.gid_map if known else [],
        root_deleted=int(root < 0),
        root_handle=handle_of(root) if tells_root else None,
    )


def mount_attributes_of(fd: int, kind: Kind) -> int:
    """Attributes of an open file's mount, MOUNT_ATTR_*.

    Before Linux 7.0 from statfs(2), which mixes in the superblock's read-only flag: on a
    read-only superblock a read-only mount looks like a writable one; it is
    restored read-only, which differs only if the filesystem is made writable later.
    """
    if kind.statmount:
        return kind.statmount.mnt_attr & ~kernel.MOUNT_ATTR_IDMAP
    flags = kernel.fstatfs(fd).flags
    attr = 0
    for flag, attribute in _FROM_STATFS.items():
        if flags & flag:
            attr |= attribute
    if not flags & (os.ST_NOATIME | os.ST_RELATIME):
        attr |= kernel.MOUNT_ATTR_STRICTATIME
    return attr


def _no_source(name: Name, kind: Kind) -> str:
    what = f"the file {quote(name.path)}"
    if kind.statmount:
        known = kind.statmount
        root = f"{quote(known.mnt_root)} of this {quote(known.fs_type)} filesystem"
        shown_at_root = name.deleted or name.path == paths.ROOT
        what = root if shown_at_root else f"{what} beneath {root}"
    elif name.deleted:
        return (
            f"no attached mount shows where {what} was deleted from: before Linux 7.0 it is found"
            " only while a file that is not deleted is open on the same mount: open one, or close"
            " this one"
        )
    elif name.path == paths.ROOT:
        what = "the root of its mount"
    return (
        f"no attached mount shows {what} where criu runs or in the dumped namespaces: mount the"
        " filesystem so that it is seen, or close the file (it may be hidden by another mount, or"
        " on a filesystem that is mounted nowhere)"
    )
