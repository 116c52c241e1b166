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
from criu_detached.images.record_reader import read_records
from criu_detached.images.recordfile import damaged
from criu_detached.images.records import SUPPLIED
from criu_detached.images.wire import WireError
from criu_detached.kernel.fds import Fd
from criu_detached.restore.before_tasks import BeforeTasks
from criu_detached.restore.checks import check_filesystems, check_mount
from criu_detached.restore.context import RestoreContext
from criu_detached.restore.files import Opener
from criu_detached.restore.plan import mount_key
from criu_detached.restore.realise import Realiser
from criu_detached.restore.trees import Trees
from criu_detached.settings import Options
from criu_detached.terminals import other_end

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.criu.criu import Criu
    from criu_detached.criu.host import Host
    from criu_detached.images.record_reader import Records
    from criu_detached.images.records import ExtFile, File
    from criu_detached.restore.plan import Plan
    from criu_detached.restore.sockets import SocketNames
    from criu_detached.restore.trees import Outcome
    from criu_detached.restore.user_provided import UserProvided


class Restore:
    """One restore: every mount is realised once, and shared by all tasks."""

    def __init__(self, host: Host) -> None:
        """Read the records and realise what can be realised before there is a task.

        Args:
            host: CRIU.

        Raises:
            DetachedError: the records are bad, or a bind source is.
        """
        self._records = read_records(host.criu.image_dir())
        for mount in self._records.mounts.values():
            check_mount(mount)
        self._socket_names = _socket_names(self._records, host)
        check_filesystems(self._records)
        provided = _find_provided(self._records, host.criu)  # changes mounts: before the context
        context = RestoreContext(host, self._records)
        realiser = _realiser(context.plan)
        host.shared.alloc(context.plan.shared_count())
        outcome = BeforeTasks(context, realiser, provided, self._socket_names).realise()
        self._trees = _trees(context, outcome, realiser)
        self._opener = Opener(context, self._trees)
        _index_files(context, outcome)

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
        return self._opener.open(file, flags, ghost).release()

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
        with Fd(self.open(b"ile[%x:%x]" % key, record.flags)) as fd:
            _set_position(fd, record)
            return fd.release()

    def _find(self, key: tuple[int, int]) -> tuple[File | None, bool]:
        """Return the record of a file, and whether it is deleted."""
        ghost = self._records.ghosts.get(key)
        return (ghost.file, True) if ghost else (self._records.files.get(key), False)

    def enter_socket_dir(self, number: int) -> None:
        """Go to where the name of a recorded socket leads to its mount, in a task.

        Args:
            number: id of the record.

        Raises:
            DetachedError: there is no such record, or no such directory any more.
        """
        if self._socket_names is None:
            raise DetachedError(f"no record of socket {number}: are the images complete?")
        self._socket_names.enter(number, self._trees)

    def socket_bound(self, number: int) -> None:
        """Give the new file of a socket what the old one had, in the task that entered its place.

        Args:
            number: id of the record.
        """
        assert self._socket_names is not None  # enter_socket_dir
        self._socket_names.bound(number)


def _socket_names(records: Records, host: Host) -> SocketNames | None:
    """Return the names of the sockets, if there are any."""
    if not records.bound_sockets:
        return None
    from criu_detached.restore.sockets import SocketNames  # few restores need it

    return SocketNames(host, records)


def _find_provided(records: Records, criu: Criu) -> dict[int, UserProvided]:
    """Return what the user provides, by mount id; the records are changed to that."""
    options = Options(criu.image_dir(), criu.plugin_options())
    wanted = any(mount.origin == SUPPLIED for mount in records.mounts.values())
    if not (wanted or options.sources or options.maps):
        return {}
    from criu_detached.restore.user_provided import find_provided  # few restores need it

    return find_provided(records, options, criu)


def _realiser(plan: Plan) -> Realiser:
    """Return what realises the mounts; with deleted files it takes more."""
    if not plan.has_ghosts():
        return Realiser()
    from criu_detached.restore.with_ghosts import GhostRealiser  # few restores need it

    return GhostRealiser(plan.ghosts)


def _trees(context: RestoreContext, outcome: Outcome, realiser: Realiser) -> Trees:
    """Return the mounts as tasks get at them; where a task realises some, it takes more."""
    if not context.plan.in_tasks:
        return Trees(context, outcome)
    from criu_detached.restore.in_task import TaskTrees

    return TaskTrees(context, outcome, realiser)


def _index_files(context: RestoreContext, outcome: Outcome) -> None:
    """Hand the file records to the fast path, which says whether they are sound."""
    fast_path = context.fast_path
    for mnt_id in context.plan.mounts:
        index = context.plan.in_tasks.get(mnt_id, -1)
        key = mount_key(mnt_id) if index < 0 else None
        fast_path.known_mount_add(mnt_id, key, index, outcome.keeps_inodes.get(mnt_id, False))
    if not fast_path.known_files_load(context.records.data):
        _refuse_files(context.records)


def _other_end(name: bytes) -> tuple[bytes, bytes]:
    """Split a name: the key, and what CRIU has put after that of a terminal for its other end."""
    key, bracket, other = name.partition(b"]")
    return key + bracket, other


def _file_key(name: bytes) -> tuple[int, int]:
    """Return mount id and inode of an external key less its first character; -1 for none."""
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
        raise DetachedError(
            f"can't restore position {record.pos} of external file {record.id:#x}: {why(error)}"
        ) from error
