# SPDX-License-Identifier: GPL-2.0-only
"""Sources in a restored mount namespace, as a task gets at them: it may be in another one."""

from __future__ import annotations

import errno
import os

from criu_detached import kernel
from criu_detached.filesystems.idmap import format_id_map
from criu_detached.kernel import namespaces
from criu_detached.kernel.fds import Fd, Fds
from criu_detached.kernel.mountinfo import read_mountinfo
from criu_detached.restore.plan import PROC_KEY
from criu_detached.restore.source import Source

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.criu.fd_store import FdStore
    from criu_detached.images.records import Mount
    from criu_detached.restore.context import RestoreContext

_MAX_MAP = 1 << 16  # bytes; the kernel takes 340 lines


class NamespaceSource(Source):
    """The source of a mount that a task realises."""

    def __init__(self, mount: Mount, context: RestoreContext, proc: int) -> None:
        """Take the record; nothing is opened yet.

        Args:
            mount: its record, checked.
            context: of the restore.
            proc: fd of a procfs that shows this task; -1 where the source is not id-mapped.
        """
        assert mount.bind_source is not None  # check_mount
        root = context.criu.mntns_root(mount.bind_source.mnt_id)
        super().__init__(mount, root, context.same_boot)
        self._store = context.store
        self._in_userns = context.in_userns
        self._proc = proc

    def _id_maps_here(self) -> tuple[list[bytes], list[bytes]]:
        uid_map, gid_map = self.mount.uid_map, self.mount.gid_map
        if not self._in_userns:
            return uid_map, gid_map
        return _seen_here(uid_map, self._proc, "uid"), _seen_here(gid_map, self._proc, "gid")

    def _clone(self, root: int) -> Fd:
        try:
            return kernel.clone_mount(root)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        with Fds() as opened:
            there, here = open_namespaces(self._store, root, opened)
            return namespaces.clone_mount_visiting(there, here, root)


def open_namespaces(store: FdStore, fd: int, opened: Fds) -> tuple[int, int]:
    """Open the mount namespace that an attached mount is in, and this task's own.

    Args:
        store: has the procfs of CRIU's process, which shows every process.
        fd: a file on the mount.
        opened: gets the fds.

    Raises:
        OSError: no process has the mount in its namespace.
    """
    proc = opened.add(store.get_inherited(PROC_KEY))
    own = opened.add(os.open(b"self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc))
    return opened.add(_open_namespace_of(proc, kernel.fstat(fd).mnt_id)), own


def _open_namespace_of(proc: int, mnt_id: int) -> Fd:
    """Open the mount namespace of a process that has a mount in it.

    A walk over the namespaces (NS_MNT_GET_NEXT) is not allowed within a PID namespace,
    but the procfs of CRIU's process shows every process there too.
    """
    with Fd.open(b".", os.O_RDONLY | os.O_DIRECTORY, proc) as listing:
        pids = [name for name in os.listdir(listing) if name.isdigit()]
    seen = set()
    for pid in pids:
        try:
            namespace = os.stat(f"{pid}/ns/mnt", dir_fd=proc).st_ino
            if namespace in seen:
                continue
            seen.add(namespace)
            if any(mount.mnt_id == mnt_id for mount in read_mountinfo(pid, proc)):
                return Fd.open(f"{pid}/ns/mnt", os.O_RDONLY, proc)
        except OSError:
            continue  # it ended
    raise OSError(errno.ENOENT, "the mount is in no mount namespace")


def _seen_here(lines: list[bytes], proc: int, kind: str) -> list[bytes]:
    """Return an id-map of CRIU's user namespace as statmount(2) shows it in this task's.

    Args:
        lines: the id-map.
        proc: fd of a procfs that shows this task.
        kind: "uid" or "gid".
    """
    format_id_map(lines)
    with Fd.open(f"self/{kind}_map", os.O_RDONLY, proc) as fd:
        own = os.read(fd, _MAX_MAP).split(b"\n")
    return translated(lines, [line for line in own if line])


def translated(lines: list[bytes], own: list[bytes]) -> list[bytes]:
    """Return what is left of an id-map in a user namespace: lines that it has all ids of.

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
