# SPDX-License-Identifier: GPL-2.0-only
"""What CRIU's own process does for a restore, before any task exists: mounts of the host.

Imports are still possible here, and the host's namespaces are at hand. What is realised reaches
the tasks as an inherited fd.
"""

from __future__ import annotations

import os

from criu_detached import kernel
from criu_detached.criu import log
from criu_detached.errors import DetachedError, why
from criu_detached.filesystems.attributes import make_user_namespace
from criu_detached.filesystems.superblock import type_of
from criu_detached.filesystems.types import PROC
from criu_detached.images.datafile import DataFileReader, open_data
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
from criu_detached.restore.checks import check_ghost
from criu_detached.restore.plan import (
    DATA_KEY,
    PROC_KEY,
    Plan,
    ghost_key,
    has_content,
    mount_key,
    userns_key,
)
from criu_detached.restore.realise import Means, attach, realise
from criu_detached.terminals import is_slave

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.criu.host import Host
    from criu_detached.images.record_reader import Records
    from criu_detached.restore.sockets import SocketNames
    from criu_detached.restore.supplied import Supply


class Outside:
    """The part of a restore that the tasks find done."""

    def __init__(
        self,
        host: Host,
        records: Records,
        plan: Plan,
        supplies: dict[int, Supply],
        socket_names: SocketNames | None,
        same_boot: bool,
    ) -> None:
        """Nothing is realised yet.

        Args:
            host: CRIU.
            records: all of the dump.
            plan: what is realised where; it is told what has become of it.
            supplies: what the user supplies, by mount id.
            socket_names: look at the directories that they start from; None: there are none.
            same_boot: the dump was made on this very boot of the system.
        """
        self._host = host
        self._records = records
        self._plan = plan
        self._socket_names = socket_names
        self._same_boot = same_boot
        self._supplies = supplies
        self._anonymous: dict[int, int] = {}  # tree fds of anonymous mounts

    def realise(self) -> None:
        """Realise what comes from the host; its procfs and the data file are inherited too.

        Raises:
            DetachedError: the records are bad, or a bind source is.
        """
        self._load()
        proc = _open_proc()
        data, reader = self._open_data()
        self._realise_all(proc, reader)
        self._host.fds.add_inherited(proc, PROC_KEY)
        if data >= 0:
            self._host.fds.add_inherited(data, DATA_KEY)

    def _load(self) -> None:
        """Import what this restore needs, and few do; tasks can import nothing."""
        if self._plan.has_ghosts():
            from criu_detached.restore.with_ghosts import realise_with_ghosts

            self._plan.with_ghosts = realise_with_ghosts

    def _open_data(self) -> tuple[int, DataFileReader | None]:
        """The data file, if there is something in it, and all of it checked; else -1."""
        ghosts = self._records.ghosts.values()
        data, reader = -1, None
        nodes = (node for nodes in self._records.nodes.values() for node in nodes)
        if any(map(has_content, ghosts)) or any(map(has_content, nodes)):
            data = open_data(self._host.criu.image_dir())
            reader = DataFileReader(data)
        for ghost in ghosts:
            check_ghost(ghost, reader)
        return data, reader

    def _realise_all(self, proc: int, reader: DataFileReader | None) -> None:
        root = os.open("/", kernel.O_PATH)
        means = Means(root, self._same_boot, proc=proc, reader=reader)
        means.with_ghosts = self._plan.with_ghosts
        try:
            for mnt_id, supply in self._supplies.items():
                means.supplied[mnt_id] = supply.open(self._plan.mounts[mnt_id])
            for mount in self._plan.mounts.values():
                if is_in_namespace(mount):
                    userns = _new_user_namespace(mount)
                    if userns >= 0:
                        self._host.fds.add_inherited(userns, userns_key(mount))
                elif mount.origin in (BIND_SOURCE, SUPPLIED):
                    self._realise_if_needed(mount, means)
            if self._records.filesystems:
                self._realise_filesystems(means)
            for mount in self._plan.mounts.values():
                if mount.parent in self._anonymous and mount.mnt_id not in self._plan.in_tasks:
                    tree = self._anonymous.get(mount.mnt_id)
                    if tree is not None:  # see _realise_if_needed
                        attach(mount, tree, self._anonymous[mount.parent], kernel.attach)
        finally:
            for fd in (root, *means.supplied.values(), *self._anonymous.values()):
                os.close(fd)

    def _realise_filesystems(self, means: Means) -> None:
        """Realise what is on filesystems that nobody else shows.

        A clone is made in the namespace of its source alone, so all of it is in one. What is
        mounted there covers its root, and then the kernel makes no user namespace: see
        current_chrooted (fs/namespace.c).
        """
        from criu_detached.restore.filesystems import make

        devices = make.find_all_devices(self._records)
        mounts = [
            mount for mount in self._plan.mounts.values() if mount.origin in (REMOUNT, RECREATED)
        ]
        try:
            user_namespaces = [_new_user_namespace(mount) for mount in mounts]
            with namespaces.PrivateNamespace():
                make.make_filesystems(self._records, means, devices)
                for mount, userns in zip(mounts, user_namespaces, strict=True):
                    self._realise(mount, means, userns)
                make.settle_filesystems(self._records, means)
        except OSError as error:
            raise DetachedError(f"can't make a mount namespace to work in: {error}") from error
        finally:
            make.close_devices(devices)
            for top in means.tops.values():
                os.close(top)

    def _realise_if_needed(self, mount: Mount, means: Means) -> None:
        """As _realise, but of a mount with terminals alone that may be replaced (--shell-job)."""
        try:
            self._realise(mount, means, _new_user_namespace(mount))
        except DetachedError as error:
            if not self._has_slaves_alone(mount.mnt_id):
                raise
            log.warn(f"mount {mount.mnt_id}, with terminals alone, is not realised: {error}")
            self._plan.not_realised[mount.mnt_id] = str(error)

    def _has_slaves_alone(self, mnt_id: int) -> bool:
        try:
            files = [file for key, file in self._records.files.items() if key[0] == mnt_id]
        except WireError:
            return False
        return bool(files) and all(map(is_slave, files))

    def _realise(self, mount: Mount, means: Means, userns: int) -> None:
        means.userns_fd = userns
        try:
            found = realise(mount, self._plan.ghosts.get(mount.mnt_id, []), means)
        finally:
            if means.userns_fd >= 0:
                os.close(means.userns_fd)
        if mount.anonymous:
            self._anonymous[mount.mnt_id] = os.dup(found.tree)
        self._plan.keeps_inodes[mount.mnt_id] = found.keeps_inodes
        if self._socket_names is not None:
            self._socket_names.check_directories(mount, found.tree)
        self._host.fds.add_inherited(found.tree, mount_key(mount))
        for ghost, fd in found.ghosts:
            assert ghost.file is not None  # record_reader
            self._host.fds.add_inherited(fd, ghost_key(ghost.file))
        log.info(f"mount {mount.mnt_id} is realised")


def _new_user_namespace(mount: Mount) -> int:
    """A user namespace with the mount's id-maps, or -1 when it needs none."""
    try:
        return make_user_namespace(mount)
    except OSError as error:
        raise DetachedError(
            f"can't make the id-map of mount {mount.mnt_id}: {why(error)}"
        ) from error


def _open_proc() -> int:
    """The host's procfs: it shows every task its own fds, whatever /proc the task has."""
    fd = os.open("/proc", kernel.O_PATH | os.O_DIRECTORY)
    if type_of(fd) is not PROC:
        os.close(fd)
        raise DetachedError("/proc is no procfs: mount it")
    return fd
