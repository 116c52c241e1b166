# SPDX-License-Identifier: GPL-2.0-only
"""Detached mounts that are there again, and how a task gets at them."""

from __future__ import annotations

from criu_detached.errors import DetachedError
from criu_detached.restore.plan import ghost_key, mount_key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

    from criu_detached.images.records import File, Ghost
    from criu_detached.kernel.fds import Fd
    from criu_detached.restore.context import RestoreContext


class Realised:
    """A detached mount that is there again; the owner of its fds."""

    __slots__ = ("ghosts", "keeps_inodes", "tree")

    def __init__(self, tree: Fd, keeps_inodes: bool, ghosts: list[tuple[Ghost, Fd]]) -> None:
        """Take the fds over.

        Args:
            tree: its tree fd.
            keeps_inodes: superblock and root are the dumped ones, so inode numbers are too.
            ghosts: its deleted files, each with an fd.
        """
        self.tree = tree
        self.keeps_inodes = keeps_inodes
        self.ghosts = ghosts

    def __enter__(self) -> Self:
        """Return the mount; its fds are closed at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the fds that were not handed on."""
        self.close()

    def close(self) -> None:
        """Close the fds that were not handed on."""
        self.tree.close()
        for _, fd in self.ghosts:
            fd.close()


class Outcome:
    """What has become of the mounts that CRIU's process realises, by mount id."""

    __slots__ = ("keeps_inodes", "not_realised")

    def __init__(self, keeps_inodes: dict[int, bool], not_realised: dict[int, str]) -> None:
        """Take note.

        Args:
            keeps_inodes: of those that are realised, see Realised.
            not_realised: of the others, why.
        """
        self.keeps_inodes = keeps_inodes
        self.not_realised = not_realised


class Trees:
    """Mounts that CRIU's process has realised; in_task.py has those of other restores."""

    def __init__(self, context: RestoreContext, outcome: Outcome) -> None:
        """Take what a task has to know, in CRIU's process.

        Args:
            context: of the restore.
            outcome: of what CRIU's process was to realise.
        """
        self.context = context
        self._outcome = outcome

    def open(self, mnt_id: int) -> Realised:
        """Open a mount, without its deleted files.

        Args:
            mnt_id: the mount, one of the records.

        Raises:
            DetachedError: it cannot be realised.
        """
        if mnt_id in self._outcome.not_realised:
            raise DetachedError(self._outcome.not_realised[mnt_id])
        tree = self.context.store.get_inherited(mount_key(mnt_id))
        return Realised(tree, self._outcome.keeps_inodes[mnt_id], [])

    def open_ghost(self, file: File) -> Fd:
        """Open a deleted file of a mount that is realised; returns an O_PATH fd.

        Args:
            file: its record.

        Raises:
            DetachedError: CRIU does not give it.
        """
        return self.context.store.get_inherited(ghost_key(file))
