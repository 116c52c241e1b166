# SPDX-License-Identifier: GPL-2.0-only
"""From a file on a detached mount to its record, or to why it cannot come back."""

from __future__ import annotations

import os
import stat

from criu_detached import kernel, paths
from criu_detached.dump.describe.mount import DetachedMount
from criu_detached.dump.kinds.recreated import MadeAnew
from criu_detached.dump.kinds.terminals import refuse_terminal
from criu_detached.dump.open_file import handle_of
from criu_detached.errors import DetachedError, quote
from criu_detached.filesystems.superblock import type_of
from criu_detached.filesystems.types import (
    MANY_DEVICES,
    PROC,
    VOLATILE_INODES,
    by_magic,
    is_silly_renamed,
)
from criu_detached.images.records import SUPPLIED, File, Handle, Mount
from criu_detached.kernel import FileStat
from criu_detached.paths import Name
from criu_detached.terminals import is_slave, is_terminal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from criu_detached.criu.host import Host
    from criu_detached.dump.filesystems.memory import Memory
    from criu_detached.dump.kinds.ghosts import GhostDescriber
    from criu_detached.dump.mounts import Mounts
    from criu_detached.dump.writing import Recording
    from criu_detached.images.datafile import DataFileWriter
    from criu_detached.settings import Options


class Files:
    """The files of one dump, by mount id and inode, as CRIU names them."""

    def __init__(
        self,
        host: Host,
        mounts: Mounts,
        recording: Recording,
        options: Callable[[], Options],
        contents: Callable[[], DataFileWriter],
    ) -> None:
        """Begin with none.

        Args:
            host: CRIU.
            mounts: those that they are on.
            recording: where they are recorded.
            options: gives the settings.
            contents: gives the data file, which takes what is in deleted files.
        """
        self._host = host
        self._mounts = mounts
        self._recording = recording
        self._root_handles: dict[tuple[int, int], Handle] = {}  # of files that are a mount's root
        self._ghosts: set[tuple[int, int]] = set()
        self._handles: dict[tuple[int, int], Handle | None] = {}  # of files of a server
        self._options = options
        self._contents = contents
        self._describer: GhostDescriber | None = None
        self.made_anew = MadeAnew()  # their inodes will be others

    def record(
        self, fd: int, link: bytes, facts: FileStat, mount: DetachedMount, watched: bool = False
    ) -> None:
        """Write a file's record, once; every further fd of it is only compared.

        Args:
            fd: the file.
            link: its /proc/self/fd link.
            facts: of it.
            mount: that it is on.
            watched: no task has it, but a watch of it: nothing is reached through that.

        Raises:
            DetachedError: it cannot be restored faithfully.
        """
        key = (facts.mnt_id, facts.ino)
        link = self._mounts.link_in(mount, link)
        known = self._recorded(key, facts)
        another = self._has_another_handle(key, fd, mount)
        if known is None:
            known = self._new_file(fd, link, facts, mount)
            self._host.fast_path.recorded_file_add(*key, known.dev, known.path)
            if known.handle:
                self._root_handles[key] = known.handle
        elif (
            known.path not in {name.path for name in paths.readings(link, facts)}
            or known.dev != facts.dev
            or another
        ):
            _refuse_other_file(fd, link, known, facts, mount, key in self._ghosts)
            if mount.memory is not None:
                self._save_link(fd, link, facts, mount, mount.memory)
        if stat.S_ISCHR(facts.mode) or stat.S_ISBLK(facts.mode):
            _refuse_device(fd, mount.record)
        if known.path == paths.ROOT or key in self._ghosts:
            self._refuse_nameless(fd, known, key in self._ghosts)
        if stat.S_ISDIR(facts.mode) and not watched and not mount.record.root_deleted:
            mount.is_held_whole(fd)  # by "..", which leads on from a deleted one too
        self._mounts.note_file(mount, fd, facts)

    def _has_another_handle(self, key: tuple[int, int], fd: int, mount: DetachedMount) -> bool:
        """Tell a server's file from one that was met before: it may give both one number.

        They may have had one name, too, one after the other.
        """
        superblock = mount.record.superblock
        if superblock is None or not by_magic(superblock.magic).server:
            return False
        handle = handle_of(fd)
        return self._handles.setdefault(key, handle) != handle

    def _new_file(self, fd: int, link: bytes, facts: FileStat, mount: DetachedMount) -> File:
        """Write the record of a file that has none."""
        name = mount.name_of(fd, link, facts)
        _refuse_types(name.path, facts, mount)
        record = _file_record(fd, name.path, facts)
        if mount.memory is not None:
            self._save(fd, record, name, facts, mount, mount.memory)
        elif name.deleted and is_slave(facts):
            self._recording.writer().file(record)  # CRIU opens a master first, and then it is there
        elif name.deleted:
            if name.path == paths.ROOT and not mount.record.root_deleted:
                raise DetachedError(
                    "it is the root of its mount and deleted, but its path in the bind source is"
                    " there again: Linux 7.0 or newer tells the two apart"
                )
            self._record_ghost(fd, record, facts, mount)
            self._ghosts.add((facts.mnt_id, facts.ino))
        else:
            check_owner(mount, name.path, facts)
            self._recording.writer().file(record)
        return record

    def _save(
        self,
        fd: int,
        record: File,
        name: Name,
        facts: FileStat,
        mount: DetachedMount,
        memory: Memory,
    ) -> None:
        """Save a file of a filesystem in memory, and write its record."""
        if not name.deleted:
            memory.save(fd, record, facts, mount.record)
            self._recording.writer().file(record)
            return
        if name.path == paths.ROOT and not mount.record.root_deleted:
            raise DetachedError(
                "it is the root of its mount and deleted, and was found too late, in a socket:"
                " receive it before the dump"
            )
        self._ghosts.add((facts.mnt_id, facts.ino))
        if facts.nlink and not stat.S_ISDIR(facts.mode):
            memory.save_later(fd, record)
        else:
            self._record_ghost(fd, record, facts, mount)

    @staticmethod
    def _save_link(
        fd: int, link: bytes, facts: FileStat, mount: DetachedMount, memory: Memory
    ) -> None:
        """Save a file in memory by a second name, if the first one is deleted."""
        name = mount.name_of(fd, link, facts)
        if not name.deleted:
            memory.save(fd, _file_record(fd, name.path, facts), facts, mount.record)

    def _record_ghost(self, fd: int, record: File, facts: FileStat, mount: DetachedMount) -> None:
        """Describe a deleted file, and write its record."""
        ghost = self._the_describer().describe(fd, record, facts, mount)
        if ghost.inode:
            self.made_anew.add(record, _superblock_dev(fd))
        self._recording.writer().ghost(ghost)

    def _the_describer(self) -> GhostDescriber:
        """What describes deleted files."""
        if self._describer is None:
            from criu_detached.dump.kinds.ghosts import GhostDescriber  # few dumps need it

            self._describer = GhostDescriber(
                self._contents(),
                self._options,
                self._host.criu.userns_ids,
                self._host.criu.dumps_user_namespace(),
            )
        return self._describer

    def _refuse_nameless(self, fd: int, file: File, ghost: bool) -> None:
        """Refuse O_NOFOLLOW where the file can be opened again by its handle alone.

        Any other way leads through a link of procfs (see restore/files.py, _open_linked).
        """
        flags = kernel.file_flags(fd)
        if not flags & os.O_NOFOLLOW or (flags & os.O_PATH if ghost else stat.S_ISDIR(file.mode)):
            return
        if handle_of(fd) is None:
            why = "its filesystem has no file handles"
        elif self._host.criu.dumps_user_namespace():
            why = "in a user namespace no file is opened by its handle"
        else:
            return
        raise DetachedError(
            "it was opened with O_NOFOLLOW and no name leads to it beneath its mount's root: only"
            f" its file handle would, but {why}; open it without O_NOFOLLOW"
        )

    def _recorded(self, key: tuple[int, int], facts: FileStat) -> File | None:
        """What of its record tells a file from another one; None: it has no record yet."""
        found = self._host.fast_path.recorded_file_find(*key)
        if found is None:
            return None
        (mnt_id, ino), (dev, path) = key, found
        handle = self._root_handles.get(key)
        return File(mnt_id=mnt_id, ino=ino, dev=dev, mode=facts.mode, path=path, handle=handle)


def _refuse_device(fd: int, mount: Mount) -> None:
    """Refuse what would not be opened again."""
    if mount.attr & kernel.MOUNT_ATTR_NODEV and not kernel.file_flags(fd) & os.O_PATH:
        raise DetachedError(
            "it is a device, and its mount is nodev, or will be after the restore (what is mounted"
            " anew for a user namespace is): it could not be opened again; close it"
        )


def _superblock_dev(fd: int) -> int:
    """Device of a file's superblock; 0: the file tells the same, or the kernel does not say."""
    try:
        many = type_of(fd).has(MANY_DEVICES)
        return kernel.superblock_dev(fd) if many else 0
    except OSError:
        return 0  # it may not be watched


def _file_record(fd: int, path: bytes, facts: FileStat) -> File:
    record = File(
        mnt_id=facts.mnt_id,
        ino=facts.ino,
        dev=facts.dev,
        mode=facts.mode,
        path=path,
        rdev=facts.rdev,
        size=facts.size,
    )
    if path == paths.ROOT and stat.S_ISREG(facts.mode):
        # There is no name to open it by: see restore/files.py, _open_linked.
        record.handle = handle_of(fd)
    return record


def _refuse_other_file(
    fd: int, link: bytes, known: File, facts: FileStat, mount: DetachedMount, ghost: bool
) -> None:
    """CRIU names external files by mount and inode: two files of one name are mixed up."""
    deleted = ghost or link.endswith(paths.DELETED)
    one_name = not deleted and (facts.nlink < 2 or stat.S_ISDIR(facts.mode))
    if known.dev != facts.dev or one_name or not _is_hard_link(fd, known, mount):
        raise DetachedError(
            f"inode {facts.ino} of its mount is another file too, {quote(known.path)}"
            " (the filesystem repeats inode numbers): close one of them"
        )


def _is_hard_link(fd: int, known: File, mount: DetachedMount) -> bool:
    """Tell whether an open file is one that is known by another path."""
    superblock = mount.record.superblock
    assert superblock is not None
    if mount.memory is not None:
        return True  # numbers are not repeated there, and Memory knows files by them
    found = handle_of(fd)
    if found is None or mount.record.origin == SUPPLIED:
        # Then the inode number must be good for something.
        return not by_magic(superblock.magic).has(VOLATILE_INODES)
    if known.handle is not None:
        return found == known.handle
    try:
        other = paths.open_at(mount.root, known.path)
    except OSError:
        return False
    try:
        return found == handle_of(other)
    finally:
        os.close(other)


def _refuse_types(path: bytes, facts: FileStat, mount: DetachedMount) -> None:
    """Refuse what would come back as something else."""
    if stat.S_ISSOCK(facts.mode):
        raise DetachedError(
            "it is the file of a unix socket, which CRIU does not dump, or not by this way:"
            " close it before the dump"
        )
    superblock = mount.record.superblock
    assert superblock is not None
    if is_terminal(facts):
        refuse_terminal(path, facts, superblock)
    fs_type = by_magic(superblock.magic)
    if fs_type.server and is_silly_renamed(path):
        raise DetachedError(
            "it is deleted, and its filesystem keeps it under this name only until it is closed:"
            " close it"
        )
    if fs_type is PROC:
        first = paths.join(paths.from_link(mount.record.root), path).split(b"/")[0]
        if first.isdigit():
            raise DetachedError(
                "it shows a process in procfs, which is another one after the restore: close it"
            )


def check_owner(mount: DetachedMount, path: bytes, facts: FileStat) -> None:
    """Refuse a file that has another owner in the bind source.

    Where the kernel does not tell a mount's id-map, that does.

    Args:
        mount: that the file is on.
        path: of the file beneath the mount's root.
        facts: of the file.

    Raises:
        DetachedError: it has.
    """
    if mount.record.origin == SUPPLIED or mount.maps_known:
        return  # there is nothing to compare with, or no need
    try:
        found = paths.facts_at(mount.root, path)
    except OSError as error:
        raise DetachedError(
            "somebody renames or deletes it while it is dumped: have that end, and dump again"
        ) from error
    if (found.uid, found.gid) != (facts.uid, facts.gid):
        raise DetachedError(
            "its mount is id-mapped, and the kernel does not tell how: Linux 7.0 or newer does of"
            " most mounts"
        )
