# SPDX-License-Identifier: GPL-2.0-only
"""From the record of a file to an fd, in a restored task: it is opened beneath its mount's root.

Nothing may be imported here, no fd may stay open but the one that is returned, and the
filesystem may be hostile.
"""

from __future__ import annotations

import os
import stat

from criu_detached import kernel, paths
from criu_detached.criu import log
from criu_detached.errors import DetachedError, quote, why
from criu_detached.images.records import File
from criu_detached.kernel import FileStat
from criu_detached.restore.plan import PROC_KEY, Plan
from criu_detached.restore.source import type_name
from criu_detached.terminals import is_terminal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.criu.host import Host
    from criu_detached.restore.in_task import Trees

# F_GETFL never returns these: with them an open would change the filesystem.
_NEVER_OPEN = os.O_CREAT | os.O_EXCL | os.O_TRUNC | os.O_TMPFILE & ~os.O_DIRECTORY


class Opener:
    """Opens recorded files."""

    def __init__(self, host: Host, plan: Plan, trees: Trees) -> None:
        """Make it, in CRIU's process.

        Args:
            host: CRIU.
            plan: what is realised where.
            trees: the trees that files are opened in.
        """
        self._host = host
        self._plan = plan
        self._trees = trees

    def open(self, file: File, flags: int, ghost: bool) -> int:
        """Open a file as CRIU would.

        Args:
            file: its record.
            flags: of open(2).
            ghost: it is deleted.

        Returns:
            The fd, the caller's.

        Raises:
            BlockingIOError: a lease is in the way.
            DetachedError: another file is there now, or it cannot be opened.
        """
        if flags & _NEVER_OPEN:
            raise DetachedError(f"{quote(file.path)} has flags {flags:#x}, which no open file has")
        tree = self._trees.tree_fd(file.mnt_id)
        try:
            if self._is_tree_fd(file, flags):
                if not ghost:
                    self._compare(file, kernel.fstat(tree))
                return os.dup(tree)
            open_it = self._open_ghost if ghost else self._open_in
            return open_it(tree, file, flags)
        except BlockingIOError:
            raise  # CRIU expects it where it breaks a lease (restore_lease_prebreaking_state)
        except OSError as error:
            raise DetachedError(
                f"can't open {quote(file.path)} on mount {file.mnt_id}: {why(error)}"
            ) from error
        finally:
            os.close(tree)

    def _is_tree_fd(self, file: File, flags: int) -> bool:
        """Tell whether what is opened is the fd of an anonymous tree, or may be.

        Of an O_PATH fd of the root nobody can tell. All of them become one: either way the
        mount can be attached by it, and is dissolved with the last of them.
        """
        mount = self._plan.mounts[file.mnt_id]
        wanted = bool(mount.anonymous) and not mount.parent and file.path == paths.ROOT
        return wanted and flags & (os.O_PATH | os.O_NOFOLLOW) == os.O_PATH

    def _open_in(self, tree: int, file: File, flags: int) -> int:
        """Open a file beneath its mount's root, in two steps.

        The first, O_PATH, shows what is there without any effect on it: opening a
        device or a FIFO that someone put in a file's place may have one.
        """
        here = paths.facts_at(tree, file.path)
        self._compare(file, here)
        flags |= os.O_CLOEXEC
        if file.path == paths.ROOT and not stat.S_ISDIR(file.mode):
            fd = self._open_root(tree, file, flags)
            found = kernel.fstat(fd)
        else:
            fd, found = kernel.open_beneath(tree, file.path, flags)
        if (found.dev, found.ino, found.rdev) != (here.dev, here.ino, here.rdev):
            os.close(fd)
            raise DetachedError(f"{quote(file.path)} was replaced while it was restored")
        return fd

    def _open_root(self, tree: int, file: File, flags: int) -> int:
        """Open the one file of a mount of a file: there is no name beneath the root."""
        if flags & os.O_PATH and not flags & os.O_NOFOLLOW:
            return kernel.open_tree(tree, b"", kernel.AT_EMPTY_PATH | kernel.OPEN_TREE_CLOEXEC)
        handle = (file.handle.type, file.handle.bytes) if file.handle else None
        if handle and not self._plan.keeps_inodes.get(file.mnt_id):
            handle = kernel.name_to_handle(tree)
        return self._open_linked(tree, tree, handle, flags)

    def _open_ghost(self, tree: int, file: File, flags: int) -> int:
        """Open a deleted file, of which an O_PATH fd is kept."""
        kept = self._trees.ghost_fd(file)
        if flags & os.O_PATH and flags & os.O_NOFOLLOW:
            return kept  # it is such an fd
        try:
            handle = kernel.name_to_handle(kept) if flags & os.O_NOFOLLOW else None
            return self._open_linked(tree, kept, handle, flags | os.O_CLOEXEC)
        finally:
            os.close(kept)

    def _open_linked(self, tree: int, fd: int, handle: tuple[int, bytes] | None, flags: int) -> int:
        """Open a file again that no name leads to, by its link in procfs.

        That link is one itself, so what had O_NOFOLLOW is opened by its handle.
        open_by_handle_at(2) wants an fd that is no O_PATH one to tell the mount.
        """
        proc = self._host.fds.get_inherited(PROC_KEY)
        try:
            if not flags & os.O_NOFOLLOW:
                return os.open(b"self/fd/%d" % fd, flags, dir_fd=proc)
            if handle is None:
                raise DetachedError("a file that was opened with O_NOFOLLOW has no handle")
            mount = os.open(b"self/fd/%d" % tree, os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
            try:
                return kernel.open_by_handle(mount, handle, flags)
            finally:
                os.close(mount)
        finally:
            os.close(proc)

    def _compare(self, file: File, found: FileStat) -> None:
        """Refuse another file, and say how this one has changed: whether it may, CRIU decides."""
        if stat.S_IFMT(found.mode) != stat.S_IFMT(file.mode):
            raise DetachedError(
                f"{quote(file.path)} on mount {file.mnt_id} is {type_name(found.mode)},"
                f" it was {type_name(file.mode)}"
            )
        if found.rdev != file.rdev:
            raise DetachedError(
                f"{quote(file.path)} on mount {file.mnt_id} is device"
                f" {os.major(found.rdev)}:{os.minor(found.rdev)}, it was"
                f" {os.major(file.rdev)}:{os.minor(file.rdev)}"
            )
        if self._plan.keeps_inodes.get(file.mnt_id) and found.ino != file.ino:
            raise DetachedError(
                f"{quote(file.path)} on mount {file.mnt_id} is another file (inode {found.ino}),"
                f" it was inode {file.ino}"
            )
        # CRIU names the file by its key when it refuses one of these (open_path, files-reg.c).
        if found.mode != file.mode and not is_terminal(file):  # CRIU sets a terminal's
            log.warn(
                f"{quote(file.path)} on mount {file.mnt_id} has mode {found.mode:o},"
                f" it had {file.mode:o}"
            )
        if found.size != file.size:
            log.warn(
                f"{quote(file.path)} on mount {file.mnt_id} has {found.size} bytes,"
                f" it had {file.size}"
            )
