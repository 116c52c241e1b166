# SPDX-License-Identifier: GPL-2.0-only
"""The tree fds of mounts, in a restored task: the first that needs a mount realises it.

Nothing may be imported here, no fd may stay open but the one that is returned, and the
filesystem may be hostile. What was realised in CRIU's process comes from its inherited fds, and
what another task has realised from the fd store.
"""

from __future__ import annotations

import errno
import os

from criu_detached import kernel
from criu_detached.errors import DetachedError
from criu_detached.filesystems.attributes import needs_id_map
from criu_detached.images.datafile import DataFileReader
from criu_detached.images.records import Mount, is_in_namespace
from criu_detached.kernel import namespaces
from criu_detached.kernel.mountinfo import read_mountinfo
from criu_detached.restore.plan import (
    DATA_KEY,
    PROC_KEY,
    Plan,
    ghost_key,
    has_content,
    mount_key,
    userns_key,
)
from criu_detached.restore.realise import Means, Realised, attach, let_go, realise

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from criu_detached.criu.host import Host
    from criu_detached.images.records import File


class Trees:
    """The trees of all mounts, as a task gets at them."""

    def __init__(self, host: Host, plan: Plan, same_boot: bool, in_userns: bool) -> None:
        """Make it, in CRIU's process.

        Args:
            host: CRIU.
            plan: what is realised where.
            same_boot: the dump was made on this very boot of the system.
            in_userns: the tasks have another user namespace than criu.
        """
        self._host = host
        self._plan = plan
        self._same_boot = same_boot
        self._in_userns = in_userns

    def tree_fd(self, mnt_id: int) -> int:
        """A new fd of a mount's tree.

        Args:
            mnt_id: the mount, one of the records.

        Raises:
            DetachedError: it cannot be realised.
        """
        if mnt_id in self._plan.not_realised:
            raise DetachedError(self._plan.not_realised[mnt_id])
        index = self._plan.in_tasks.get(mnt_id)
        if index is None:
            return self._host.fds.get_inherited(mount_key(self._plan.mounts[mnt_id]))
        if (tree := self._stored_tree(mnt_id, index)) >= 0:
            return tree
        lock = self._plan.in_tasks[self._plan.root_of(mnt_id)]
        self._host.shared.lock(lock)
        try:
            tree = self._stored_tree(mnt_id, index)
            return tree if tree >= 0 else self._realise_tree(mnt_id)
        finally:
            self._host.shared.unlock(lock)

    def ghost_fd(self, file: File) -> int:
        """A new O_PATH fd of a deleted file; its mount is realised.

        Args:
            file: its record.

        Raises:
            DetachedError: CRIU does not give it.
        """
        number = self._plan.ghosts_in_tasks.get((file.mnt_id, file.ino))
        if number is None:
            return self._host.fds.get_inherited(ghost_key(file))
        return self._host.fds.get(self._host.shared.get(number))

    def _stored_tree(self, mnt_id: int, index: int) -> int:
        """A new fd of a tree that some task has realised; -1 when none has."""
        value = self._host.shared.get(index)
        if value < 0:
            return -1
        # known_files.h: the fd store's id, and in the lowest bit whether inodes are kept
        self._plan.keeps_inodes[mnt_id] = bool(value & 1)
        return self._host.fds.get(value >> 1)

    def _realise_tree(self, mnt_id: int) -> int:
        """Realise a mount, and those of its tree: this task is the first to need one."""
        trees: dict[int, int] = {}
        try:
            for mount in self._plan.trees[self._plan.root_of(mnt_id)]:
                inside = is_in_namespace(mount)
                found = self._realise_inside(mount) if inside else self._take_realised(mount)
                if mount.parent:
                    self._attach_inside(mount, found, trees[mount.parent])
                trees[mount.mnt_id] = self._store(found, mount.mnt_id)
            return os.dup(trees[mnt_id])
        finally:
            for tree in trees.values():
                os.close(tree)

    def _take_realised(self, mount: Mount) -> Realised:
        """A mount of a tree that was realised outside of the tasks."""
        if mount.mnt_id in self._plan.not_realised:
            raise DetachedError(self._plan.not_realised[mount.mnt_id])
        found = Realised(
            self._host.fds.get_inherited(mount_key(mount)), self._plan.keeps_inodes[mount.mnt_id]
        )
        for ghost in self._plan.ghosts.get(mount.mnt_id, []):
            assert ghost.file is not None  # record_reader
            found.ghosts.append((ghost, self._host.fds.get_inherited(ghost_key(ghost.file))))
        return found

    def _realise_inside(self, mount: Mount) -> Realised:
        """Realise a mount from the restored namespace."""
        source = mount.bind_source
        assert source is not None
        ghosts = self._plan.ghosts.get(mount.mnt_id, [])
        opened = []

        def inherited(key: bytes, wanted: bool) -> int:
            if not wanted:
                return -1
            opened.append(self._host.fds.get_inherited(key))
            return opened[-1]

        try:
            data = inherited(DATA_KEY, any(has_content(ghost) for ghost in ghosts))
            means = Means(
                self._host.criu.mntns_root(source.mnt_id),
                self._same_boot,
                inherited(userns_key(mount), needs_id_map(mount)),
                self._clone_inside,
                inherited(PROC_KEY, bool(ghosts or mount.root_deleted or source.id_mapped)),
                DataFileReader(data) if data >= 0 else None,
            )
            means.in_userns = self._in_userns
            means.with_ghosts = self._plan.with_ghosts
            return realise(mount, ghosts, means)
        finally:
            for fd in opened:
                os.close(fd)

    def _attach_inside(self, mount: Mount, found: Realised, parent: int) -> None:
        """Attach a mount of a tree on its parent, where the root of the tree was cloned."""
        source = self._plan.mounts[self._plan.root_of(mount.mnt_id)].bind_source
        assert source is not None

        def move(tree: int, target: int) -> None:
            try:
                kernel.attach(tree, target)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                place = self._host.criu.mntns_root(source.mnt_id)
                self._visit(
                    place, lambda ns, own: namespaces.attach_visiting(ns, own, tree, target)
                )

        try:
            attach(mount, found.tree, parent, move)
        except DetachedError:
            let_go(found)
            raise

    def _store(self, found: Realised, mnt_id: int) -> int:
        """Keep a mount that this task has realised for the others; returns its tree fd."""
        self._plan.keeps_inodes[mnt_id] = found.keeps_inodes
        try:
            for ghost, fd in found.ghosts:
                assert ghost.file is not None  # record_reader
                number = self._plan.ghosts_in_tasks[mnt_id, ghost.file.ino]
                self._host.shared.set(number, self._host.fds.add(fd))
            # Last: now the others look no further.
            kept = self._host.fds.add(found.tree)
            self._host.shared.set(self._plan.in_tasks[mnt_id], kept << 1 | int(found.keeps_inodes))
        except DetachedError:
            os.close(found.tree)
            raise
        finally:
            for _, fd in found.ghosts:
                os.close(fd)
        return found.tree

    def _clone_inside(self, fd: int) -> int:
        """Clone a mount of a restored namespace, which may be another than this task's."""
        try:
            return kernel.clone_mount(fd)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        return self._visit(fd, lambda ns, own: namespaces.clone_mount_visiting(ns, own, fd))

    def _visit(self, fd: int, work: Callable[[int, int], int]) -> int:
        """Work in the namespace of an attached mount.

        Args:
            fd: a file on the mount.
            work: is given fds of that namespace and of this task's own.
        """
        proc = self._host.fds.get_inherited(PROC_KEY)
        own = other = -1
        try:
            own = os.open(b"self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
            other = _open_namespace_of(proc, kernel.fstat(fd).mnt_id)
            return work(other, own)
        finally:
            for used in (proc, own, other):
                if used >= 0:
                    os.close(used)


def _open_namespace_of(proc: int, mnt_id: int) -> int:
    """An fd of the mount namespace that a mount is in: that of a process which sees it.

    A walk over the namespaces (NS_MNT_GET_NEXT) is not allowed within a PID namespace,
    but the host's procfs shows every process there too.
    """
    listing = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=proc)
    try:
        pids = [name for name in os.listdir(listing) if name.isdigit()]
    finally:
        os.close(listing)
    seen = set()
    for pid in pids:
        try:
            namespace = os.stat(f"{pid}/ns/mnt", dir_fd=proc).st_ino
            if namespace in seen:
                continue
            seen.add(namespace)
            if any(mount.mnt_id == mnt_id for mount in read_mountinfo(pid, proc)):
                return os.open(f"{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
        except OSError:
            continue  # it ended
    raise OSError(errno.ENOENT, "the mount is in no mount namespace")
