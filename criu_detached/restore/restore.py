# SPDX-License-Identifier: GPL-2.0-only
"""The restore: what CRIU asks of it, from a record to an fd.

records -> realise each mount once -> open each file in it -> hand the fd to CRIU.

``Restore`` is made in CRIU's own process before any task exists; all else of it runs in the
tasks, where nothing may be imported, no fd may stay open but the one that is returned, and the
filesystem may be hostile.
"""

from __future__ import annotations

import os
import stat

from criu_detached import paths
from criu_detached.errors import DetachedError, quote, why
from criu_detached.filesystems.superblock import boot_id
from criu_detached.images.record_reader import Records, read_records
from criu_detached.images.recordfile import damaged
from criu_detached.images.records import ExtFile, File
from criu_detached.images.wire import WireError
from criu_detached.restore.before_tasks import Outside
from criu_detached.restore.checks import check_filesystems, check_mount
from criu_detached.restore.files import Opener
from criu_detached.restore.in_task import Trees
from criu_detached.restore.plan import Plan, mount_key
from criu_detached.restore.supplied import find_supplies, has_userns
from criu_detached.terminals import other_end

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.criu.host import Host
    from criu_detached.restore.sockets import SocketNames


class Restore:
    """One restore: every mount is realised once, and shared by all tasks."""

    def __init__(self, host: Host) -> None:
        """Read the records and realise what can be realised outside the tasks.

        Args:
            host: CRIU.

        Raises:
            DetachedError: the records are bad, or a bind source is.
        """
        self._host = host
        self._records = read_records(host.criu.image_dir())
        for mount in self._records.mounts.values():
            check_mount(mount)
        self._socket_names: SocketNames | None = None
        if self._records.bound_sockets:
            from criu_detached.restore.sockets import SocketNames  # few restores need it

            self._socket_names = SocketNames(host, self._records)
        check_filesystems(self._records)
        supplies = find_supplies(self._records, host)  # changes the mounts: before the plan
        self._plan = Plan(self._records)
        same_boot = self._records.header.boot_id == boot_id()
        outside = Outside(host, self._records, self._plan, supplies, self._socket_names, same_boot)
        self._trees = Trees(host, self._plan, same_boot, has_userns(host))
        self._opener = Opener(host, self._plan, self._trees)
        host.shared.alloc(self._plan.shared_count())
        outside.realise()
        self._index_files()

    def _index_files(self) -> None:
        """Hand the file records to the fast path, which says whether they are sound."""
        for mount in self._plan.mounts.values():
            index = self._plan.in_tasks.get(mount.mnt_id, -1)
            key = mount_key(mount) if index < 0 else None
            keeps = self._plan.keeps_inodes.get(mount.mnt_id, False)
            self._host.fast_path.known_mount_add(mount.mnt_id, key, index, keeps)
        if not self._host.fast_path.known_files_load(self._records.data):
            _refuse_files(self._records)

    def open(self, name: bytes, flags: int) -> int:
        """Open a file in a task, as CRIU would.

        Args:
            name: as CRIU has it: the external key less its first character.
            flags: of open(2).

        Returns:
            The fd.

        Raises:
            BlockingIOError: a lease is in the way.
            DetachedError: there is no such record, or another file is there now.
        """
        name, other = _other_end(name)
        file, ghost = self._find(_file_key(name))
        if file is None:
            raise DetachedError(f"no record of {quote(name)}: are the images complete?")
        if other:
            file, ghost = other_end(file, other), False
        return self._opener.open(file, flags, ghost)

    def ext_file(self, file_id: int) -> int | None:
        """Open a device that CRIU left to plugins, in a task.

        Args:
            file_id: CRIU's id of the open file.

        Returns:
            The fd; None when it was not this plugin's.

        Raises:
            DetachedError: another file is there now, or it cannot be opened.
        """
        record = self._records.ext_files.get(file_id)
        if record is None:
            return None
        key = (record.mnt_id, record.ino)
        file, _ = self._find(key)
        if file is None or not (stat.S_ISBLK(file.mode) or stat.S_ISCHR(file.mode)):
            raise DetachedError(f"external file {file_id:#x} is no device: the images are damaged")
        fd = self.open(b"ile[%x:%x]" % (record.mnt_id, record.ino), record.flags)
        _set_position(fd, record)
        return fd

    def _find(self, key: tuple[int, int]) -> tuple[File | None, bool]:
        """The record of a file, and whether it is deleted."""
        ghost = self._records.ghosts.get(key)
        return (ghost.file, True) if ghost else (self._records.files.get(key), False)

    def enter_socket_dir(self, number: int) -> None:
        """Make the name of a recorded socket lead to its mount, in a task.

        Args:
            number: id of the record.

        Raises:
            DetachedError: there is no such record, or no such directory any more.
        """
        if self._socket_names is None:
            raise DetachedError(f"no record of socket {number}: are the images complete?")
        self._socket_names.lead(number, self._trees.tree_fd)

    def socket_bound(self, number: int) -> None:
        """Give the new file of a socket what the old one had, in the task that is led to it.

        Args:
            number: id of the record.
        """
        assert self._socket_names is not None  # it was led
        self._socket_names.bound(number)


def _other_end(name: bytes) -> tuple[bytes, bytes]:
    """The key of a terminal, and what CRIU has put after it to name the other end; else nothing."""
    key, bracket, other = name.partition(b"]")
    return key + bracket, other


def _file_key(name: bytes) -> tuple[int, int]:
    """Mount id and inode of an external key less its first character."""
    try:
        mnt_id, ino = name.removeprefix(b"ile[").removesuffix(b"]").split(b":")
        return int(mnt_id, 16), int(ino, 16)
    except ValueError:
        return -1, -1


def _refuse_files(records: Records) -> None:
    """Say what is wrong with the file records."""
    try:
        for file in records.files.values():
            if file.path != paths.ROOT and paths.is_invalid(file.path):
                raise DetachedError(f"a file record has the invalid path {quote(file.path)}")
    except WireError as error:
        raise damaged(error) from error
    raise damaged(WireError("its file records are invalid"))


def _set_position(fd: int, record: ExtFile) -> None:
    if not record.pos:
        return
    try:
        os.lseek(fd, record.pos, os.SEEK_SET)
    except OSError as error:
        os.close(fd)
        raise DetachedError(
            f"can't restore position {record.pos} of external file {record.id:#x}: {why(error)}"
        ) from error
