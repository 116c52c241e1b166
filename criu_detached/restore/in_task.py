# SPDX-License-Identifier: GPL-2.0-only
"""Mounts that are realised in a restored task: the first that needs one does so.

Nothing may be imported here, no fd may stay open but the one that is returned, and the
filesystem may be hostile. What was realised in CRIU's process comes from its inherited fds, and
what another task has realised from the fd store.
"""

from __future__ import annotations

import errno
import os

from criu_detached import kernel
from criu_detached.filesystems.attributes import needs_id_map
from criu_detached.images.datafile import DataFileReader
from criu_detached.images.records import is_in_namespace
from criu_detached.kernel import namespaces
from criu_detached.kernel.fds import Fd, Fds
from criu_detached.restore.context import ProcessFds
from criu_detached.restore.namespace_source import NamespaceSource, open_namespaces
from criu_detached.restore.plan import DATA_KEY, PROC_KEY, ghost_key, has_content, userns_key
from criu_detached.restore.realise import cannot_attach, open_place
from criu_detached.restore.trees import Realised, Trees

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.images.records import File, Ghost, Mount
    from criu_detached.restore.context import RestoreContext
    from criu_detached.restore.realise import Realiser
    from criu_detached.restore.trees import Outcome


class TaskTrees(Trees):
    """The mounts of a restore of which tasks realise some."""

    def __init__(self, context: RestoreContext, outcome: Outcome, realiser: Realiser) -> None:
        """Take what a task has to know, in CRIU's process.

        Args:
            context: of the restore.
            outcome: of what CRIU's process was to realise.
            realiser: realises the mounts of this restore.
        """
        super().__init__(context, outcome)
        self._realiser = realiser
        self._plan = context.plan
        self._store = context.store
        self._shared = context.shared

    def open(self, mnt_id: int) -> Realised:
        """Open a mount, as Trees.open() does; realise it if no task has done so.

        Args:
            mnt_id: the mount, one of the records.

        Raises:
            DetachedError: it cannot be realised.
        """
        index = self._plan.in_tasks.get(mnt_id)
        if index is None:
            return super().open(mnt_id)
        found = self._stored(index)
        if found is None:
            with self._shared.locked(self._plan.in_tasks[self._plan.root_of(mnt_id)]):
                found = self._stored(index) or self._realise_tree(mnt_id)
        return found

    def open_ghost(self, file: File) -> Fd:
        """Open a deleted file, as Trees.open_ghost() does."""
        number = self._plan.ghosts_in_tasks.get((file.mnt_id, file.ino))
        if number is None:
            return super().open_ghost(file)
        return self._store.get(self._shared.get(number))

    def _stored(self, index: int) -> Realised | None:
        """Open a mount that some task has realised; None when none has."""
        value = self._shared.get(index)
        if value < 0:
            return None
        # known_files.h: the fd store's id, and in the lowest bit whether inodes are kept
        return Realised(self._store.get(value >> 1), bool(value & 1), [])

    def _realise_tree(self, mnt_id: int) -> Realised:
        """Realise a mount, and those of its tree: this task is the first to need one."""
        trees: dict[int, int] = {}
        keeps_inodes: dict[int, bool] = {}
        with Fds() as opened:
            for mount in self._plan.trees[self._plan.root_of(mnt_id)]:
                with self._realise(mount) as found:
                    if mount.parent:
                        self._attach(mount, found.tree, trees[mount.parent])
                    self._keep(found, mount.mnt_id)
                    keeps_inodes[mount.mnt_id] = found.keeps_inodes
                    trees[mount.mnt_id] = opened.add(found.tree)
            return Realised(Fd(os.dup(trees[mnt_id])), keeps_inodes[mnt_id], [])

    def _realise(self, mount: Mount) -> Realised:
        """Return a mount of a tree with its ghosts: from the restored namespace, or from CRIU."""
        ghosts = self._plan.ghosts.get(mount.mnt_id, [])
        if is_in_namespace(mount):
            return self._realise_inside(mount, ghosts)
        found = super().open(mount.mnt_id)
        with Fds() as opened:
            tree = opened.add(found.tree)
            made = [
                (ghost, opened.add(self._store.get_inherited(ghost_key(ghost.file))))
                for ghost in ghosts
                if ghost.file is not None
            ]
            opened.release()
        return Realised(Fd(tree), found.keeps_inodes, [(ghost, Fd(fd)) for ghost, fd in made])

    def _realise_inside(self, mount: Mount, ghosts: list[Ghost]) -> Realised:
        """Realise a mount from the restored namespace."""
        source = mount.bind_source
        assert source is not None  # check_mount
        with Fds() as opened:
            proc = data = userns = -1
            if any(map(has_content, ghosts)):
                data = opened.add(self._store.get_inherited(DATA_KEY))
            if needs_id_map(mount):
                userns = opened.add(self._store.get_inherited(userns_key(mount.mnt_id)))
            if ghosts or mount.root_deleted or source.id_mapped:
                proc = opened.add(self._store.get_inherited(PROC_KEY))
            contents = DataFileReader(data) if data >= 0 else None
            return self._realiser.realise(
                NamespaceSource(mount, self.context, proc), ProcessFds(proc, contents, userns)
            )

    def _attach(self, mount: Mount, tree: int, parent: int) -> None:
        """Attach a mount of a tree on its parent, where the root of the tree was cloned."""
        source = self._plan.mounts[self._plan.root_of(mount.mnt_id)].bind_source
        assert source is not None  # check_mount
        try:
            with open_place(mount, parent) as target:
                self._move(tree, target, source.mnt_id)
        except OSError as error:
            raise cannot_attach(mount, error) from error

    def _move(self, tree: int, target: int, near: int) -> None:
        """Attach a tree here, or in the restored namespace that had a mount."""
        try:
            kernel.attach(tree, target)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            with Fds() as opened:
                place = self.context.criu.mntns_root(near)
                there, here = open_namespaces(self._store, place, opened)
                namespaces.attach_visiting(there, here, tree, target)

    def _keep(self, found: Realised, mnt_id: int) -> None:
        """Keep a mount that this task has realised, for the others."""
        for ghost, fd in found.ghosts:
            assert ghost.file is not None  # record_reader
            number = self._plan.ghosts_in_tasks[mnt_id, ghost.file.ino]
            self._shared.set(number, self._store.add(fd))
        # Last: now the others look no further.
        kept = self._store.add(found.tree)
        self._shared.set(self._plan.in_tasks[mnt_id], kept << 1 | int(found.keeps_inodes))
