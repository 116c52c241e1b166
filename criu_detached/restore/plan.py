# SPDX-License-Identifier: GPL-2.0-only
"""What a restore realises, and where: in CRIU's process or in the tasks.

The plan is made of the records alone, before anything is realised, and never changes.
"""

from __future__ import annotations

from criu_detached.errors import DetachedError
from criu_detached.images.records import BIND_SOURCE, SUPPLIED, Ghost, Mount, Node, is_in_namespace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.images.record_reader import Records
    from criu_detached.images.records import File

# Keys of CRIU's inherited fds
PROC_KEY = b"criu-detached-proc"
DATA_KEY = b"criu-detached-data"


def mount_key(mnt_id: int) -> bytes:
    """Return the key of the tree fd of a mount that CRIU's process has realised."""
    return b"criu-detached-mount-%d" % mnt_id


def ghost_key(file: File) -> bytes:
    """Return the key of the O_PATH fd of a deleted file that CRIU's process has made."""
    return b"criu-detached-ghost-%d-%d" % (file.mnt_id, file.ino)


def userns_key(mnt_id: int) -> bytes:
    """Return the key of the user namespace with a mount's id-maps."""
    return b"criu-detached-userns-%d" % mnt_id


def has_content(record: Ghost | Node) -> bool:
    """Tell whether something of a file is in the data file."""
    return record.inode is not None and record.inode.data_size > 0


class Plan:
    """The mounts of a restore, the trees that they form, and the ghosts on them."""

    def __init__(self, records: Records) -> None:
        """Sort the mounts and the ghosts.

        Args:
            records: all of the dump; mounts are checked, and user-provided ones replaced.

        Raises:
            DetachedError: a tree cannot be put together in one place.
        """
        self.mounts = records.mounts
        self.trees: dict[int, list[Mount]] = {}  # by the mount at the root, which comes first
        for mount in self.mounts.values():
            self.trees.setdefault(self.root_of(mount.mnt_id), []).append(mount)
        # A tree that has a mount of the restored namespace is put together by a task.
        trees = [tree for tree in self.trees.values() if any(map(is_in_namespace, tree))]
        for tree in trees:
            _refuse_parted(tree)
        inside = [mount.mnt_id for tree in trees for mount in tree]
        # Number in the shared memory of what a task realises: of mounts, then of ghosts.
        self.in_tasks = {mnt_id: index for index, mnt_id in enumerate(inside)}
        self.ghosts_in_tasks: dict[tuple[int, int], int] = {}
        self.ghosts: dict[int, list[Ghost]] = {}  # by mount
        for key, ghost in records.ghosts.items():
            self.ghosts.setdefault(key[0], []).append(ghost)
            if key[0] in self.in_tasks:
                number = len(self.in_tasks) + len(self.ghosts_in_tasks)
                self.ghosts_in_tasks[key] = number

    def has_ghosts(self) -> bool:
        """Tell whether anything deleted is to be made: a file, or the root of a mount."""
        return bool(self.ghosts) or any(mount.root_deleted for mount in self.mounts.values())

    def shared_count(self) -> int:
        """Return how many numbers the tasks share."""
        return len(self.in_tasks) + len(self.ghosts_in_tasks)

    def root_of(self, mnt_id: int) -> int:
        """Return the mount at the root of a mount's tree; only anonymous mounts have parents."""
        while parent := self.mounts[mnt_id].parent:
            mnt_id = parent
        return mnt_id


def _refuse_parted(tree: list[Mount]) -> None:
    """Refuse a tree of which a task is to realise a part, and CRIU's process the root.

    No dump records such a tree, but its root may be user-provided by now. To a mount of a new
    filesystem others may be attached from any namespace.

    Raises:
        DetachedError: it is such a tree.
    """
    root, *others = tree
    if is_in_namespace(root) or root.origin not in (BIND_SOURCE, SUPPLIED):
        return
    mount = next(filter(is_in_namespace, others))
    raise DetachedError(
        f"mount {mount.mnt_id} is of one tree with mount {root.mnt_id}, which is supplied from"
        ' outside of its namespace: give a "source" for both, or for none'
    )
