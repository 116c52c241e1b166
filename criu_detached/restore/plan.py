# SPDX-License-Identifier: GPL-2.0-only
"""What a restore realises, and where: in CRIU's process or in the tasks.

All that the tasks need to know is found out before there is one; each has its own copy of it then.
"""

from __future__ import annotations

from criu_detached.errors import DetachedError
from criu_detached.images.records import BIND_SOURCE, SUPPLIED, Ghost, Mount, Node, is_in_namespace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.images.record_reader import Records
    from criu_detached.images.records import File
    from criu_detached.restore.realise import WithGhosts

# Keys of CRIU's inherited fds
PROC_KEY = b"criu-detached-proc"
DATA_KEY = b"criu-detached-data"


def mount_key(mount: Mount) -> bytes:
    """Key of the tree fd of a mount that CRIU's process has realised."""
    return b"criu-detached-mount-%d" % mount.mnt_id


def ghost_key(file: File) -> bytes:
    """Key of the O_PATH fd of a deleted file that CRIU's process has made."""
    return b"criu-detached-ghost-%d-%d" % (file.mnt_id, file.ino)


def userns_key(mount: Mount) -> bytes:
    """Key of the user namespace with a mount's id-maps."""
    return b"criu-detached-userns-%d" % mount.mnt_id


def has_content(record: Ghost | Node) -> bool:
    """Tell whether something of a file is in the data file."""
    return record.inode is not None and record.inode.data_size > 0


class Plan:
    """The mounts of a restore, their trees and ghosts, and what has become of them."""

    def __init__(self, records: Records) -> None:
        """Sort them.

        Args:
            records: all of the dump, its mounts checked, and those replaced that are supplied.

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
        self.with_ghosts: WithGhosts | None = None  # what realises a mount with ghosts
        self.keeps_inodes: dict[int, bool] = {}  # superblock and root are the dumped ones
        self.not_realised: dict[int, str] = {}  # and why

    def has_ghosts(self) -> bool:
        """Tell whether anything deleted is to be made: a file, or the root of a mount."""
        return bool(self.ghosts) or any(mount.root_deleted for mount in self.mounts.values())

    def shared_count(self) -> int:
        """How many numbers the tasks share."""
        return len(self.in_tasks) + len(self.ghosts_in_tasks)

    def root_of(self, mnt_id: int) -> int:
        """The mount at the root of an anonymous tree; any other mount is one by itself."""
        while parent := self.mounts[mnt_id].parent:
            mnt_id = parent
        return mnt_id


def _refuse_parted(tree: list[Mount]) -> None:
    """No dump writes that, but the root may be supplied by now.

    One of a new filesystem may be attached to from any namespace.
    """
    root, *others = tree
    if is_in_namespace(root) or root.origin not in (BIND_SOURCE, SUPPLIED):
        return
    mount = next(filter(is_in_namespace, others))
    raise DetachedError(
        f"mount {mount.mnt_id} is of one tree with mount {root.mnt_id}, which is supplied from"
        ' outside of its namespace: give a "source" for both, or for none'
    )
