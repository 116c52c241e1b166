# SPDX-License-Identifier: GPL-2.0-only
"""Deleted files that the restore recreates: who has one must find it in one way alone."""

from __future__ import annotations

from criu_detached.dump.observe.processes import who_of_tasks_has
from criu_detached.dump.observe.watches import watches_of_tasks
from criu_detached.errors import DetachedError, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from criu_detached.dump.observe.machine import Machine
    from criu_detached.images.records import File
    from criu_detached.kernel import FileStat


class RecreatedFiles:
    """The deleted files of one dump that will be new ones."""

    def __init__(self) -> None:
        self._files: dict[tuple[int, int], File] = {}  # by device and inode
        self._watchable: dict[tuple[int, int], File] = {}  # by that of the superblock, and inode

    def add(self, file: File, superblock_dev: int = 0) -> None:
        """Take note of one.

        Args:
            file: its record.
            superblock_dev: device of its superblock; 0: it is that of the file.

        Raises:
            DetachedError: it is held on another detached mount too.
        """
        self._watchable[superblock_dev or file.dev, file.ino] = file
        known = self._files.setdefault((file.dev, file.ino), file)
        if known.mnt_id != file.mnt_id:
            raise DetachedError(
                f"the deleted file {quote(file.path)} is held on mount {known.mnt_id} and on mount"
                f" {file.mnt_id}: {_WOULD_PART}"
            )

    def check(
        self, named: set[tuple[int, int]], left: Iterable[FileStat], machine: Machine
    ) -> None:
        """Look for those that a task has in another way than by its detached mount.

        Args:
            named: device and inode of watched files that come back with their watch.
            left: stat of the deleted files on attached mounts, which CRIU dumps.
            machine: what is around the dump.

        Raises:
            DetachedError: there is one.
        """
        if self._files:
            self._refuse_on_other_mounts(left, machine)
            self._refuse_watched(named, machine)

    def _refuse_on_other_mounts(self, left: Iterable[FileStat], machine: Machine) -> None:
        """Refuse what both CRIU and the plugin would recreate."""
        for shown in left:
            file = self._files.get((shown.dev, shown.ino))
            if file is not None:
                raise DetachedError(
                    f"the deleted file {quote(file.path)} on mount {file.mnt_id} is"
                    f" {_held(machine, shown)} too: {_WOULD_PART}"
                )

    def _refuse_watched(self, named: set[tuple[int, int]], machine: Machine) -> None:
        """Refuse watches of them where CRIU keeps these by the file handle.

        It knows no ghosts but its own at restore (get_mark_path, criu/fsnotify.c). This is for
        a CRIU that gives no chance to name them (WatchedFiles.claim).
        """
        for pid, watch in watches_of_tasks(machine):
            file = self._watchable.get((watch.dev, watch.ino))
            if file is not None and (watch.dev, watch.ino) not in named:
                raise DetachedError(
                    f"process {pid} watches the deleted file {quote(file.path)} on mount"
                    f" {file.mnt_id} (inotify or fanotify), which will be another one after the"
                    " restore: end the watch, or close the file"
                )


def _held(machine: Machine, shown: FileStat) -> str:
    """How a file is held on another mount: what no process shows is in flight (SCM_RIGHTS)."""
    seen = who_of_tasks_has(machine, shown)
    if seen is not None:
        return f"held by process {seen.pid} ({seen.link}) on mount {shown.mnt_id}"
    return f"in flight over a unix socket (SCM_RIGHTS) on mount {shown.mnt_id}"


_WOULD_PART = "it would come back as two files, and their data would part; close it on one of them"
