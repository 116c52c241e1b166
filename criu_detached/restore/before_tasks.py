# SPDX-License-Identifier: GPL-2.0-only
"""What CRIU's own process realises for a restore, before there is any task.

Imports are still possible here, and the mounts where criu runs are at hand. What is realised
reaches the tasks as inherited fds.
"""

from __future__ import annotations

import os

from criu_detached import kernel
from criu_detached.criu import log
from criu_detached.errors import DetachedError, why
from criu_detached.filesystems.attributes import make_user_namespace, needs_id_map
from criu_detached.filesystems.superblock import type_of
from criu_detached.filesystems.types import PROC
from criu_detached.images.records import (
    BIND_SOURCE,
    RECREATED,
    REMOUNT,
    SUPPLIED,
    Mount,
    is_in_namespace,
)
from criu_detached.images.wire import WireError
from criu_detached.kernel import namespaces
from criu_detached.kernel.fds import Fd, Fds
from criu_detached.restore.checks import check_ghost
from criu_detached.restore.context import ProcessFds
from criu_detached.restore.plan import (
    DATA_KEY,
    PROC_KEY,
    ghost_key,
    has_content,
    mount_key,
    userns_key,
)
from criu_detached.restore.realise import cannot_attach, open_place
from criu_detached.restore.source import Source
from criu_detached.restore.trees import Outcome
from criu_detached.terminals import is_slave

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.restore.context import RestoreContext
    from criu_detached.restore.realise import Realiser
    from criu_detached.restore.sockets import SocketNames
    from criu_detached.restore.user_provided import UserProvided


class BeforeTasks:
    """The part of a restore that the tasks find done."""

    def __init__(
        self,
        context: RestoreContext,
        realiser: Realiser,
        provided: dict[int, UserProvided],
        socket_names: SocketNames | None,
    ) -> None:
        """Realise nothing yet.

        Args:
            context: of the restore.
            realiser: realises the mounts of this restore.
            provided: what the user provides, by mount id.
            socket_names: look at the directories that they start from; None: there are none.
        """
        self._context = context
        self._realiser = realiser
        self._provided = provided
        self._socket_names = socket_names
        self._plan = context.plan
        self._records = context.records
        self._store = context.store
        self._keeps_inodes: dict[int, bool] = {}
        self._not_realised: dict[int, str] = {}
        self._anonymous: dict[int, Fd] = {}  # tree fds of anonymous mounts

    def realise(self) -> Outcome:
        """Realise what comes from where criu runs; its procfs and the data file are inherited too.

        Raises:
            DetachedError: the records are bad, or a bind source is.
        """
        try:
            with _open_proc() as proc:
                if self._needs_data():
                    self._realise_with_data(proc)
                else:
                    self._realise_all(ProcessFds(proc))
                self._store.add_inherited(proc, PROC_KEY)
        finally:
            for tree in self._anonymous.values():
                tree.close()
        return Outcome(self._keeps_inodes, self._not_realised)

    def _needs_data(self) -> bool:
        """Tell whether something of a file is in the data file."""
        nodes = (node for nodes in self._records.nodes.values() for node in nodes)
        return any(map(has_content, self._records.ghosts.values())) or any(map(has_content, nodes))

    def _realise_with_data(self, proc: int) -> None:
        from criu_detached.images.datafile import DataFileReader, open_data  # few restores need it

        with Fd(open_data(self._context.criu.image_dir())) as data:
            self._realise_all(ProcessFds(proc, DataFileReader(data)))
            self._store.add_inherited(data, DATA_KEY)

    def _realise_all(self, fds: ProcessFds) -> None:
        for ghost in self._records.ghosts.values():
            check_ghost(ghost, fds.contents)
        with Fd.open("/", kernel.O_PATH) as root:
            for mount in self._plan.mounts.values():
                if is_in_namespace(mount):
                    self._prepare_for_task(mount)
                elif mount.origin == BIND_SOURCE:
                    self._realise_if_needed(Source(mount, root, self._context.same_boot), fds)
                elif mount.origin == SUPPLIED:
                    self._realise_provided(mount, fds)
        if self._records.filesystems:
            self._realise_filesystems(fds)
        for mount in self._plan.mounts.values():
            if mount.parent in self._anonymous and mount.mnt_id not in self._plan.in_tasks:
                self._attach(mount)

    def _prepare_for_task(self, mount: Mount) -> None:
        """Make the user namespace for a mount that a task realises: a task can make none."""
        if needs_id_map(mount):
            with _new_user_namespace(mount) as userns:
                self._store.add_inherited(userns, userns_key(mount.mnt_id))

    def _realise_provided(self, mount: Mount, fds: ProcessFds) -> None:
        provided = self._provided[mount.mnt_id]
        with provided.open(mount) as root:
            source = provided.source_of(mount, root, self._context.same_boot)
            self._realise_if_needed(source, fds)

    def _realise_if_needed(self, source: Source, fds: ProcessFds) -> None:
        """Realise a mount, unless it cannot be and has nothing but terminals.

        CRIU may replace them (--shell-job).
        """
        mnt_id = source.mount.mnt_id
        try:
            with Fds() as opened:
                self._realise(source, _with_user_namespace(fds, source.mount, opened))
        except DetachedError as error:
            if not self._has_slaves_alone(mnt_id):
                raise
            log.warn(f"mount {mnt_id}, with terminals alone, is not realised: {error}")
            self._not_realised[mnt_id] = str(error)

    def _has_slaves_alone(self, mnt_id: int) -> bool:
        try:
            files = [file for key, file in self._records.files.items() if key[0] == mnt_id]
        except WireError:
            return False
        return bool(files) and all(map(is_slave, files))

    def _realise_filesystems(self, fds: ProcessFds) -> None:
        """Realise what is on filesystems that nobody else shows.

        A clone is made in the namespace of its source alone, so all of it is in one. What is
        mounted there covers its root, and then the kernel makes no user namespace: see
        current_chrooted (fs/namespace.c).
        """
        from criu_detached.restore.filesystems.make import NewFilesystems

        mounts = [
            mount for mount in self._plan.mounts.values() if mount.origin in (REMOUNT, RECREATED)
        ]
        same_boot = self._context.same_boot
        with NewFilesystems(self._records, same_boot, fds) as made, Fds() as opened:
            try:
                all_fds = [_with_user_namespace(fds, mount, opened) for mount in mounts]
                with namespaces.PrivateNamespace():
                    made.make()
                    for mount, mount_fds in zip(mounts, all_fds, strict=True):
                        self._realise(made.source_of(mount), mount_fds)
                    made.set_limits()
            except OSError as error:
                raise DetachedError(f"can't make a mount namespace to work in: {error}") from error

    def _realise(self, source: Source, fds: ProcessFds) -> None:
        """Realise a mount, and hand it on to the tasks."""
        mount = source.mount
        with self._realiser.realise(source, fds) as found:
            if mount.anonymous:
                self._anonymous[mount.mnt_id] = Fd(os.dup(found.tree))
            self._keeps_inodes[mount.mnt_id] = found.keeps_inodes
            if self._socket_names is not None:
                self._socket_names.check_directories(mount, found.tree)
            self._store.add_inherited(found.tree, mount_key(mount.mnt_id))
            for ghost, fd in found.ghosts:
                assert ghost.file is not None  # record_reader
                self._store.add_inherited(fd, ghost_key(ghost.file))
        log.info(f"mount {mount.mnt_id} is realised")

    def _attach(self, mount: Mount) -> None:
        """Attach a mount of an anonymous tree on its parent."""
        tree = self._anonymous.get(mount.mnt_id)
        if tree is None:
            return  # see _realise_if_needed
        try:
            with open_place(mount, self._anonymous[mount.parent]) as target:
                kernel.attach(tree, target)
        except OSError as error:
            raise cannot_attach(mount, error) from error


def _with_user_namespace(fds: ProcessFds, mount: Mount, opened: Fds) -> ProcessFds:
    """Add a user namespace with the mount's id-maps to the fds of this process.

    Args:
        fds: of this process.
        mount: its record.
        opened: gets the user namespace, if the mount needs one.
    """
    if not needs_id_map(mount):
        return fds
    return ProcessFds(fds.proc, fds.contents, opened.add(_new_user_namespace(mount)))


def _new_user_namespace(mount: Mount) -> Fd:
    try:
        return Fd(make_user_namespace(mount))
    except OSError as error:
        raise DetachedError(
            f"can't make the id-map of mount {mount.mnt_id}: {why(error)}"
        ) from error


def _open_proc() -> Fd:
    """Open the procfs where criu runs: it shows every task its own fds, whatever its /proc is."""
    fd = Fd.open("/proc", kernel.O_PATH | os.O_DIRECTORY)
    if type_of(fd) is not PROC:
        fd.close()
        raise DetachedError("/proc is no procfs: mount it")
    return fd
