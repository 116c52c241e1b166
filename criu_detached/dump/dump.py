# SPDX-License-Identifier: GPL-2.0-only
"""The dump: from a link that CRIU reads to a record.

link read -> known to CRIU? (the shim) -> classify the mount by fd -> describe mount
and file -> record.
"""

from __future__ import annotations

import fcntl
import os
import stat

from criu_detached import kernel, log, paths
from criu_detached.contents import ContentWriter
from criu_detached.dump import classify, external
from criu_detached.dump.anonymous import AnonymousMounts
from criu_detached.dump.classify import Classifier, Kind
from criu_detached.dump.describe import DetachedMount, describe_mount
from criu_detached.dump.external import ExternalMount
from criu_detached.dump.ghosts import GhostDescriber, handle_of
from criu_detached.dump.holders import held_files
from criu_detached.dump.sockets import SocketAnswer, Sockets
from criu_detached.dump.sources import SourceFinder
from criu_detached.dump.terminals import is_left_to_shell_job, refuse_terminal
from criu_detached.dump.watched import WatchedFiles
from criu_detached.dump.watches import watches_of_tasks
from criu_detached.errors import DetachedError, quote
from criu_detached.kernel import FileFacts
from criu_detached.options import Options
from criu_detached.paths import Name
from criu_detached.recordfile import RecordWriter
from criu_detached.records import (
    FORMAT,
    RECREATED,
    REMOUNT,
    SUPPLIED,
    ExtFile,
    File,
    Header,
    Mount,
    is_in_namespace,
)
from criu_detached.superblock import boot_id
from criu_detached.terminals import is_slave, is_terminal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.dump.filesystems.memory import Memory
    from criu_detached.dump.filesystems.soleheld import SoleHeld
    from criu_detached.host import Host


_LOCKABLE = (
    kernel.MOUNT_ATTR_RDONLY
    | kernel.MOUNT_ATTR_NOSUID
    | kernel.MOUNT_ATTR_NODEV
    | kernel.MOUNT_ATTR_NOEXEC
)


class Dump:
    """One dump. Created when the first file on a mount that CRIU does not know is met."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._finder = SourceFinder(host.dumps_mount_namespace(), host.mount_known)
        self._classifier = Classifier()
        self._writer: RecordWriter | None = None
        self._mounts: dict[int, DetachedMount | None] = {}
        self._files: dict[tuple[int, int], File] = {}
        self._settings: Options | None = None
        self._ghosts: set[tuple[int, int]] = set()
        self._made_anew: list[File] = []
        self._anonymous = AnonymousMounts(self._describe_or_leave)
        self._contents = ContentWriter(host.image_dir())
        self._sole_held: SoleHeld | None = None
        self._describer = GhostDescriber(
            self._contents, self._options, host.userns_ids, host.dumps_user_namespace()
        )
        self._sockets = Sockets(host, self._finder)
        self._watched = WatchedFiles(host, self._finder, self._record_watched)

    def link_read(self, fd: int, link: bytes, facts: FileFacts) -> bool:
        """Take note of a file that CRIU is about to dump as a regular file.

        Args:
            fd: the file in this process.
            link: its /proc/self/fd link, which starts with "/".
            facts: of the file.

        Returns:
            True when it is recorded, False when it is CRIU's business.

        Raises:
            DetachedError: it cannot be restored faithfully.
        """
        try:
            mount = self._mount_of(fd, link, facts)
            if mount is None:
                return False
            self._record_file(fd, link, facts, mount)
        except DetachedError as error:
            if not is_left_to_shell_job(facts):
                raise
            log.warn(
                f"can't dump the terminal {quote(link)} (mount {facts.mnt_id}) on a detached mount,"
                f" unless CRIU is to replace it (--shell-job): {error}"
            )
            return False
        return True

    def ext_file(self, fd: int, file_id: int, facts: FileFacts) -> bool:
        """Take note of a device that CRIU leaves to plugins.

        Args:
            fd: the file in this process.
            file_id: CRIU's id of the open file.
            facts: of the file.

        Returns:
            As link_read.

        Raises:
            DetachedError: it cannot be restored faithfully.
        """
        link = os.readlink(b"/proc/self/fd/%d" % fd)
        mount = self._mount_of(fd, link, facts)
        if mount is None:
            return False
        self._record_file(fd, link, facts, mount)
        log.warn(
            f"the device {quote(link)} will be opened anew at restore: what its driver keeps for"
            " the open file is not saved"
        )
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        position = _position(fd)
        assert self._writer is not None  # _record_file
        self._writer.ext_file(
            ExtFile(id=file_id, flags=flags, pos=position, mnt_id=facts.mnt_id, ino=facts.ino)
        )
        return True

    def socket_bound(self, fd: int, name: bytes, facts: FileFacts) -> SocketAnswer | None:
        """Take note of the name of a unix socket that CRIU is about to dump.

        Args:
            fd: the socket's file.
            name: that the socket is bound to.
            facts: of the file.

        Returns:
            What CRIU is to be told; None: the file is its own business.

        Raises:
            DetachedError: it cannot be restored faithfully.
        """
        link = os.readlink(b"/proc/self/fd/%d" % fd)
        mount = self._mount_of(fd, link, facts)
        if mount is None:
            return None
        if mount.record.anonymous:
            link = self._anonymous.relative(link, facts.mnt_id)
        file = mount.name_of(fd, link, facts)
        answer, new = self._sockets.note(name, file, facts.nlink, mount)
        if new is not None:
            if not new.deleted and mount.root >= 0:
                _check_owner(mount, file.path, facts)
            self._open_records().bound_socket(new)
        return answer

    def find_watched(self) -> None:
        """Take note of watched files, one of which CRIU has found on no mount.

        Raises:
            DetachedError: one cannot be restored faithfully.
        """
        self._watched.find()

    def is_watched_ghost(self, fd: int) -> bool:
        """Tell whether a deleted file that is watched will be made anew on a detached mount.

        Args:
            fd: the file, opened on a mount that CRIU knows.
        """
        return self._watched.claim(fd)

    def _record_watched(self, fd: int) -> tuple[int, int] | None:
        """Record a file that is watched; its mount id and inode, or None: not detached."""
        link, facts = os.readlink(b"/proc/self/fd/%d" % fd), kernel.fstat(fd)
        mount = self._mount_of(fd, link, facts)
        if mount is None:
            return None
        self._record_file(fd, link, facts, mount)
        return facts.mnt_id, facts.ino

    def is_detached(self, fd: int, facts: FileFacts) -> bool:
        """Tell whether an open file is on a mount that the plugin is there for."""
        kind = self._classifier.classify(fd, facts.mnt_id).name
        return kind in (classify.DETACHED, classify.ANONYMOUS)

    def flush(self) -> None:
        """Write the records of the fast path, which are in memory; raises DetachedError."""
        if self._writer is not None:
            if self._sole_held is not None:
                self._sole_held.finish()
            self._refuse_watched()
            self._writer.framed(*self._host.take_plain_records())
            self._writer.flush()

    def _refuse_watched(self) -> None:
        """Refuse watches of files that are made anew, where CRIU keeps them by the file handle.

        It knows no ghosts but its own at restore (get_mark_path, criu/fsnotify.c). This is for
        a CRIU that gives no chance to name them (WatchedFiles.claim).
        """
        anew = {(ghost.dev, ghost.ino): ghost for ghost in self._made_anew}
        for pid, watch in watches_of_tasks() if anew else ():
            file = anew.get((watch.dev, watch.ino))
            if file is not None and (watch.dev, watch.ino) not in self._watched.named:
                raise DetachedError(
                    f"process {pid} watches the deleted file {quote(file.path)} on mount"
                    f" {file.mnt_id} (inotify or fanotify), which will be another one after the"
                    " restore: end the watch, or close the file"
                )

    def _mount_of(self, fd: int, link: bytes, facts: FileFacts) -> DetachedMount | None:
        """The record of a file's mount, made when it is first met; None: not detached."""
        try:
            return self._mounts[facts.mnt_id]
        except KeyError:
            pass
        mount = self._new_mount(fd, link, facts)
        self._mounts[facts.mnt_id] = mount
        return mount

    def _new_mount(self, fd: int, link: bytes, facts: FileFacts) -> DetachedMount | None:
        kind = self._classifier.classify(fd, facts.mnt_id)
        if kind.name == classify.ANONYMOUS:
            mounts = self._anonymous.describe(fd, link, facts)
            for mount in mounts:
                self._record_mount(mount, kind, has_plain_files=len(mounts) == 1)
            return self._mounts[facts.mnt_id]
        if kind.name != classify.DETACHED:
            log.info(f"mount {facts.mnt_id} is {kind.name}: left to CRIU")
            return None
        mount = self._describe_or_leave(fd, link, facts, kind)
        self._record_mount(mount, kind)
        return mount

    def _record_mount(
        self, mount: DetachedMount, kind: Kind, *, has_plain_files: bool = True
    ) -> None:
        """Write a mount's record, and let the fast path take its files."""
        record = mount.record
        source = record.bind_source
        assert source is not None
        if self._host.dumps_user_namespace():
            if record.origin == REMOUNT:
                _confine(record)
            if record.anonymous and record.origin != RECREATED and not is_in_namespace(record):
                _refuse_unlocked(record)
        self._open_records().mount(record)
        self._mounts[record.mnt_id] = mount
        if self._host.flushes() and mount.root >= 0 and has_plain_files and not mount.twins:
            compare_owner = not mount.maps_known
            self._host.plain_mount_add(record.mnt_id, mount.root, source.mnt_id, compare_owner)
        log.info(
            f"mount {record.mnt_id} is {kind.name}; its root {quote(record.root or b'?')} "
            + _way_back(record)
        )

    def _describe_or_leave(
        self, fd: int, link: bytes, facts: FileFacts, kind: Kind
    ) -> DetachedMount:
        """Describe a mount; what has no source may be the user's to supply."""
        options = self._options()
        if facts.mnt_id in options.external_ids:
            return ExternalMount(fd, link, facts, kind)
        try:
            return self._describe_mount(fd, link, facts, kind)
        except DetachedError as error:
            if not options.external_all:
                raise DetachedError(f"{error}; {external.advice(facts.mnt_id)}") from error
            log.info(f"mount {facts.mnt_id} is external: {error}")
        return ExternalMount(fd, link, facts, kind)

    def _describe_mount(self, fd: int, link: bytes, facts: FileFacts, kind: Kind) -> DetachedMount:
        """Describe a mount by a file on it; before Linux 7.0 a deleted one may not do."""
        try:
            return describe_mount(fd, link, facts, kind, self._finder.candidates)
        except DetachedError as error:
            if not kind.statmount and link.endswith(paths.DELETED):
                for other in held_files(facts.mnt_id):
                    other_link = os.readlink(b"/proc/self/fd/%d" % other)
                    if not other_link.endswith(paths.DELETED):
                        other_facts = kernel.fstat(other)
                        return self._describe_mount(other, other_link, other_facts, kind)
            return self._the_sole_held().describe(fd, link, facts, kind, error)

    def _the_sole_held(self) -> SoleHeld:
        """What describes mounts that have no bind source."""
        if self._sole_held is None:
            from criu_detached.dump.filesystems.soleheld import (
                SoleHeld,  # few dumps need it, and it takes long
            )

            self._sole_held = SoleHeld(self._host, self._open_records, self._contents)
        return self._sole_held

    def _open_records(self) -> RecordWriter:
        if self._writer is None:
            self._refuse_stream()
            release = os.fsencode(os.uname().release)
            header = Header(format=FORMAT, boot_id=boot_id(), machine=release)
            self._writer = RecordWriter(self._host.image_dir(), header)
            if self._host.need_plugin():
                raise DetachedError("CRIU did not note in its inventory that the plugin is needed")
        return self._writer

    @staticmethod
    def _refuse_stream() -> None:
        """With --stream, images go to a process at a socket, and the record file would be lost."""
        for name in os.listdir("/proc/self/fd"):
            if kernel.unix_peer_path(int(name)).endswith(b"streamer-capture.sock"):
                raise DetachedError("--stream cannot carry detached-mount records: dump without it")

    def _record_file(self, fd: int, link: bytes, facts: FileFacts, mount: DetachedMount) -> None:
        """Write a file's record, once; every further fd of it is only compared."""
        key = (facts.mnt_id, facts.ino)
        if mount.record.anonymous:
            link = self._anonymous.relative(link, facts.mnt_id)
        known = self._files.get(key) or self._plain_file(key, facts)
        if known is None:
            known = self._new_file(fd, link, facts, mount)
            self._files[key] = known
            self._host.plain_file_note(*key, known.dev, known.path)
        elif known.path not in {name.path for name in paths.readings(link, facts)} or (
            known.dev != facts.dev
        ):
            _refuse_other_file(fd, link, known, facts, mount, key in self._ghosts)
        if stat.S_ISCHR(facts.mode) or stat.S_ISBLK(facts.mode):
            _refuse_device(fd, mount.record)
        if known.path == paths.ROOT or key in self._ghosts:
            self._refuse_nameless(fd, known, key in self._ghosts)
        if mount.record.anonymous:
            self._anonymous.note(fd, facts)

    def _new_file(self, fd: int, link: bytes, facts: FileFacts, mount: DetachedMount) -> File:
        """Write the record of a file that has none."""
        name = mount.name_of(fd, link, facts)
        _refuse_types(name.path, facts, mount)
        record = _file_record(fd, name.path, facts)
        if mount.memory is not None:
            self._save(fd, record, name, facts, mount, mount.memory)
        elif name.deleted and is_slave(facts):
            self._open_records().file(record)  # CRIU opens a master first, and then it is there
        elif name.deleted:
            if name.path == paths.ROOT and not mount.record.root_deleted:
                raise DetachedError(
                    "it is the root of its mount and deleted, but its path in the bind source is"
                    " there again: Linux 7.0 or newer tells the two apart"
                )
            ghost = self._describer.describe(fd, record, facts, mount)
            self._open_records().ghost(ghost)
            self._ghosts.add((facts.mnt_id, facts.ino))
            if ghost.inode:
                self._made_anew.append(record)
        else:
            _check_owner(mount, name.path, facts)
            self._open_records().file(record)
        return record

    def _save(
        self,
        fd: int,
        record: File,
        name: Name,
        facts: FileFacts,
        mount: DetachedMount,
        memory: Memory,
    ) -> None:
        """Save a file of a filesystem in memory, and write its record."""
        if not name.deleted:
            memory.save(fd, record, facts, mount.record)
            self._open_records().file(record)
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
            self._open_records().ghost(self._describer.describe(fd, record, facts, mount))

    def _options(self) -> Options:
        """The settings, read when the first is asked for."""
        if self._settings is None:
            self._settings = Options(self._host.image_dir(), self._host.plugin_options())
        return self._settings

    def _refuse_nameless(self, fd: int, file: File, ghost: bool) -> None:
        """Refuse O_NOFOLLOW where the file can be opened again by its handle alone.

        Any other way leads through a link of procfs (see restore/restore.py, _open_linked).
        """
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        if not flags & os.O_NOFOLLOW or (flags & os.O_PATH if ghost else stat.S_ISDIR(file.mode)):
            return
        if handle_of(fd) is None:
            why = "its filesystem has no file handles"
        elif self._host.dumps_user_namespace():
            why = "in a user namespace no file is opened by its handle"
        else:
            return
        raise DetachedError(
            "it was opened with O_NOFOLLOW and no name leads to it beneath its mount's root: only"
            f" its file handle would, but {why}; open it without O_NOFOLLOW"
        )

    def _plain_file(self, key: tuple[int, int], facts: FileFacts) -> File | None:
        """A file that the fast path (plugin/plain_files.c) has recorded."""
        found = self._host.plain_file_find(*key)
        if found is None:
            return None
        return File(mnt_id=key[0], ino=key[1], dev=found[0], mode=facts.mode, path=found[1])


def _confine(mount: Mount) -> None:
    """What is mounted anew is the host's: a user namespace gets no privileges from it."""
    confined = mount.attr | kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV
    if confined != mount.attr:
        log.info(
            f"mount {mount.mnt_id} will be nosuid and nodev: its filesystem will be mounted by the"
            " host, and the dumped tasks are in a user namespace"
        )
        mount.attr = confined


def _refuse_unlocked(mount: Mount) -> None:
    """Refuse an anonymous mount whose flags tasks could take away after the restore.

    Whoever has its tree fd may do so by mount_setattr(2), unless the flags are locked, as those
    of mounts are that a user namespace was given (lock_mnt_tree, fs/namespace.c).
    """
    if mount.attr & _LOCKABLE:
        raise DetachedError(
            "it is on an anonymous mount with restrictions (ro, nosuid, nodev, noexec) and would"
            " come from where criu runs; the dumped tasks, in a user namespace, could lift them:"
            " mount its filesystem in their mount namespace, or close the fd of its tree"
        )


def _refuse_device(fd: int, mount: Mount) -> None:
    """Refuse what would not be opened again."""
    if mount.attr & kernel.MOUNT_ATTR_NODEV and not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_PATH:
        raise DetachedError(
            "it is a device, and its mount is nodev, or will be after the restore (what is mounted"
            " anew for a user namespace is): it could not be opened again; close it"
        )


def _file_record(fd: int, path: bytes, facts: FileFacts) -> File:
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
        # There is no name to open it by: see restore/restore.py, _open_linked.
        record.handle = handle_of(fd)
    return record


def _refuse_other_file(
    fd: int, link: bytes, known: File, facts: FileFacts, mount: DetachedMount, ghost: bool
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
    found = handle_of(fd)
    if found is None or mount.record.origin == SUPPLIED:
        # Then the inode number must be good for something.
        return superblock.magic not in kernel.VOLATILE_INODES
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


def _refuse_types(path: bytes, facts: FileFacts, mount: DetachedMount) -> None:
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
    if superblock.magic == kernel.PROC_SUPER_MAGIC:
        first = paths.join(paths.from_link(mount.record.root), path).split(b"/")[0]
        if first.isdigit():
            raise DetachedError(
                "it shows a process in procfs, which is another one after the restore: close it"
            )


def _check_owner(mount: DetachedMount, path: bytes, facts: FileFacts) -> None:
    """Where the kernel does not tell a mount's id-map, another owner does."""
    if mount.record.origin == SUPPLIED:
        return  # there is nothing to compare with
    found = paths.facts_at(mount.root, path)
    if not mount.maps_known and (found.uid, found.gid) != (facts.uid, facts.gid):
        raise DetachedError(
            "its mount is id-mapped, and the kernel does not tell how: Linux 7.0 or newer does of"
            " most mounts"
        )


def _way_back(mount: Mount) -> str:
    source = mount.bind_source
    assert source is not None
    if mount.origin == SUPPLIED:
        return external.at_restore(mount)
    if mount.origin == REMOUNT:
        return "is on a filesystem that will be mounted again"
    if mount.origin == RECREATED:
        return "is on a filesystem that will be made anew"
    return f"is shown by mount {source.mnt_id} at {quote(source.mountpoint)}" + (
        " in the dumped namespace" if source.in_namespace else ""
    )


def _position(fd: int) -> int:
    """File position of a device; those that cannot seek have none."""
    try:
        return os.lseek(fd, 0, os.SEEK_CUR)
    except OSError:
        return 0
