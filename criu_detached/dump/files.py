# SPDX-License-Identifier: GPL-2.0-only
"""From a file on a detached mount to its record, or to why it cannot come back."""

from __future__ import annotations

import os
import stat

from criu_detached import kernel, paths
from criu_detached.errors import DetachedError, quote
from criu_detached.filesystems.types import MANY_DEVICES, PROC, is_silly_renamed
from criu_detached.images.records import File
from criu_detached.once import once
from criu_detached.terminals import is_slave, is_terminal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from criu_detached.dump.context import DumpContext
    from criu_detached.dump.describe.mount import DetachedMount
    from criu_detached.dump.kinds.ghosts import GhostDescriber
    from criu_detached.dump.kinds.recreated import RecreatedFiles
    from criu_detached.dump.open_file import Identity, OpenFile
    from criu_detached.images.records import Ghost, Handle
    from criu_detached.kernel import FileStat
    from criu_detached.paths import Name


class Files:
    """The files of one dump, by mount id and inode, as CRIU names them."""

    def __init__(self, context: DumpContext) -> None:
        """Begin with none.

        Args:
            context: of the dump.
        """
        self._context = context
        self._root_handles: dict[tuple[int, int], Handle] = {}  # of files that are a mount's root
        self._ghosts: set[tuple[int, int]] = set()
        self._handles: dict[tuple[int, int], Handle | None] = {}  # of files of a server
        self._identities: dict[tuple[int, int], Identity] = {}  # where numbers may repeat

    def record(self, file: OpenFile, mount: DetachedMount, watched: bool = False) -> None:
        """Write a file's record, once; every further fd of it is only compared.

        Args:
            file: the file.
            mount: that it is on.
            watched: no task has it, but a watch of it: nothing is reached through that.

        Raises:
            DetachedError: it cannot be restored faithfully.
        """
        key = file.stat.mnt_id, file.stat.ino
        file = mount.rooted(file)
        known = self._recorded(file)
        another = self._has_another_handle(file, mount)
        if known is None:
            known = self._new_file(file, mount)
            self._context.fast_path.recorded_file_add(*key, known.dev, known.path)
            if known.handle:
                self._root_handles[key] = known.handle
        elif another or not _has_name(file, known) or self._may_be_another(file, mount):
            self._refuse_other_file(file, known, mount)
            mount.save_other_name(file)
        self._check_opening(file, known, mount)
        if file.is_directory and not watched and not mount.record.root_deleted:
            mount.note_directory_held(file.fd)  # by "..", which leads on from a deleted one too
        mount.note(file)

    def finish(
        self,
        late: Iterable[Ghost],
        named: set[tuple[int, int]],
        left: Iterable[FileStat],
    ) -> None:
        """Write what was put off, and look for files that would come back as two.

        Args:
            late: the records of deleted files that were put off.
            named: device and inode of watched files that come back with their watch.
            left: stat of the deleted files on attached mounts, which CRIU dumps.

        Raises:
            DetachedError: a file that is recreated is held in another way too.
        """
        for ghost in late:
            self._write_ghost(ghost)
        for identity in self._identities.values():
            identity.close()
        if self._ghosts:
            self._recreated.check(named, left, self._context.machine)

    def _has_another_handle(self, file: OpenFile, mount: DetachedMount) -> bool:
        """Tell a server's file from one that was met before: it may give both one number.

        They may have had one name, too, one after the other.
        """
        if not mount.fs_type.server:
            return False
        key = file.stat.mnt_id, file.stat.ino
        return self._handles.setdefault(key, file.handle) != file.handle

    def _may_be_another(self, file: OpenFile, mount: DetachedMount) -> bool:
        """Tell whether a file may have but the name and number of one that was met before.

        A name that is there leads to one file, and no name does to what is deleted.
        """
        key = file.stat.mnt_id, file.stat.ino
        return not mount.has_sure_numbers and (file.is_marked_deleted or key in self._ghosts)

    def _note_identity(self, file: OpenFile, name: Name, mount: DetachedMount) -> None:
        """Take note of a file that may be met again where its name does not lead to it."""
        has_names = file.stat.nlink > 1 and not file.is_directory
        if not mount.has_sure_numbers and (name.deleted or has_names or not mount.shows_files):
            self._identities[file.stat.mnt_id, file.stat.ino] = file.identity

    def _is_same(self, file: OpenFile, known: File, mount: DetachedMount) -> bool:
        """Tell whether a file is a known one that has its number, and may have another name."""
        identity = self._identities.get((known.mnt_id, known.ino))
        try:
            return identity.is_of(file) if identity else mount.is_hard_link(file, known)
        except OSError:
            return False

    def _recorded(self, file: OpenFile) -> File | None:
        """What of its record tells a file from another one; None: it has no record yet."""
        mnt_id, ino = key = file.stat.mnt_id, file.stat.ino
        found = self._context.fast_path.recorded_file_find(mnt_id, ino)
        if found is None:
            return None
        dev, path = found
        handle = self._root_handles.get(key)
        return File(mnt_id=mnt_id, ino=ino, dev=dev, mode=file.stat.mode, path=path, handle=handle)

    def _new_file(self, file: OpenFile, mount: DetachedMount) -> File:
        """Write the record of a file that has none."""
        name = mount.locate(file)
        _refuse_types(file, name.path, mount, self._context)
        self._note_identity(file, name, mount)
        record = _file_record(file, name.path)
        if not name.deleted:
            mount.save(file, record)
        elif not is_slave(file.stat):  # CRIU opens a master first, and then its slave is there
            self._new_ghost(file, record, mount)
            return record
        self._context.records.file(record)
        return record

    def _new_ghost(self, file: OpenFile, record: File, mount: DetachedMount) -> None:
        """Write the record of a deleted file, or have it written at the end."""
        if record.path == paths.ROOT and not mount.record.root_deleted:
            raise DetachedError(mount.ROOT_IS_THERE)
        self._ghosts.add((record.mnt_id, record.ino))
        if not mount.save_at_end(file, record):
            ghost = self._describer.describe(file, record, mount)
            self._write_ghost(ghost, _superblock_dev(file))

    def _write_ghost(self, ghost: Ghost, superblock_dev: int = 0) -> None:
        if ghost.inode and ghost.file:
            self._recreated.add(ghost.file, superblock_dev)
        self._context.records.ghost(ghost)

    @once
    def _describer(self) -> GhostDescriber:
        """What describes deleted files."""
        from criu_detached.dump.kinds.ghosts import GhostDescriber  # few dumps need it

        return GhostDescriber(self._context)

    @once
    def _recreated(self) -> RecreatedFiles:
        """Those whose inodes will be others."""
        from criu_detached.dump.kinds.recreated import RecreatedFiles  # few dumps need it

        return RecreatedFiles()

    def _refuse_other_file(self, file: OpenFile, known: File, mount: DetachedMount) -> None:
        """CRIU names external files by mount and inode: two files of one name are mixed up."""
        deleted = (known.mnt_id, known.ino) in self._ghosts or file.is_marked_deleted
        one_name = not deleted and (file.stat.nlink < 2 or file.is_directory)
        if known.dev != file.stat.dev or one_name or not self._is_same(file, known, mount):
            raise DetachedError(
                f"inode {known.ino} of its mount is another file too, {quote(known.path)}"
                " (the filesystem repeats inode numbers): close one of them"
            )

    def _check_opening(self, file: OpenFile, known: File, mount: DetachedMount) -> None:
        """Refuse what could not be opened again as it is open."""
        if stat.S_ISCHR(file.stat.mode) or stat.S_ISBLK(file.stat.mode):
            _refuse_device(file, mount)
        ghost = (known.mnt_id, known.ino) in self._ghosts
        if known.path == paths.ROOT or ghost:
            self._refuse_nameless(file, ghost)

    def _refuse_nameless(self, file: OpenFile, ghost: bool) -> None:
        """Refuse O_NOFOLLOW where the file can be opened again by its handle alone.

        Any other way leads through a link of procfs (see restore/files.py, _open_linked).
        """
        flags = kernel.file_flags(file.fd)
        by_path = flags & os.O_PATH if ghost else file.is_directory
        if not flags & os.O_NOFOLLOW or by_path:
            return
        if file.handle is None:
            why = "its filesystem has no file handles"
        elif self._context.criu.dumps_user_namespace():
            why = "in a user namespace no file is opened by its handle"
        else:
            return
        raise DetachedError(
            "it was opened with O_NOFOLLOW and no name leads to it beneath its mount's root: only"
            f" its file handle would, but {why}; open it without O_NOFOLLOW"
        )


def _has_name(file: OpenFile, known: File) -> bool:
    """Tell whether a file may be a known one, by its name and device."""
    names = [name.path for name in file.readings]
    return known.path in names and known.dev == file.stat.dev


def _refuse_device(file: OpenFile, mount: DetachedMount) -> None:
    """Refuse what would not be opened again."""
    nodev = mount.record.attr & kernel.MOUNT_ATTR_NODEV
    if nodev and not kernel.file_flags(file.fd) & os.O_PATH:
        raise DetachedError(
            "it is a device, and its mount is nodev, or will be after the restore (what is mounted"
            " anew for a user namespace is): it could not be opened again; close it"
        )


def _superblock_dev(file: OpenFile) -> int:
    """Device of a file's superblock; 0: the file tells the same, or the kernel does not say."""
    try:
        return kernel.superblock_dev(file.fd) if file.fs_type.has(MANY_DEVICES) else 0
    except OSError:
        return 0  # it may not be watched


def _file_record(file: OpenFile, path: bytes) -> File:
    record = File(
        mnt_id=file.stat.mnt_id,
        ino=file.stat.ino,
        dev=file.stat.dev,
        mode=file.stat.mode,
        path=path,
        rdev=file.stat.rdev,
        size=file.stat.size,
    )
    if path == paths.ROOT and stat.S_ISREG(file.stat.mode):
        # There is no name to open it by: see restore/files.py, _open_linked.
        record.handle = file.handle
    return record


def _refuse_types(file: OpenFile, path: bytes, mount: DetachedMount, context: DumpContext) -> None:
    """Refuse what would come back as something else."""
    if stat.S_ISSOCK(file.stat.mode):
        raise DetachedError(
            "it is the file of a unix socket, which CRIU does not dump, or not by this way:"
            " close it before the dump"
        )
    if is_terminal(file.stat):
        from criu_detached.dump.kinds.terminals import refuse_terminal  # few dumps need it

        refuse_terminal(path, file.stat, mount.fs_type, context.machine)
    if mount.fs_type.server and is_silly_renamed(path):
        raise DetachedError(
            "it is deleted, and its filesystem keeps it under this name only until it is closed:"
            " close it"
        )
    if mount.fs_type is PROC:
        first = paths.join(paths.from_link(mount.record.root), path).split(b"/")[0]
        if first.isdigit():
            raise DetachedError(
                "it shows a process in procfs, which is another one after the restore: close it"
            )
