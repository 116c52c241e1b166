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
from criu_detached.kernel.devnum import format_dev
from criu_detached.kernel.fds import Fd
from criu_detached.restore.plan import PROC_KEY
from criu_detached.restore.source import type_name
from criu_detached.terminals import is_terminal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.images.records import File
    from criu_detached.kernel import FileStat
    from criu_detached.restore.context import RestoreContext
    from criu_detached.restore.trees import Realised, Trees

# F_GETFL never returns these: with them an open would change the filesystem.
_NEVER_OPEN = os.O_CREAT | os.O_EXCL | os.O_TRUNC | os.O_TMPFILE & ~os.O_DIRECTORY


class Opener:
    """Opens recorded files."""

    def __init__(self, context: RestoreContext, trees: Trees) -> None:
        """Make it, in CRIU's process.

        Args:
            context: of the restore.
            trees: the mounts that files are opened in.
        """
        self._context = context
        self._trees = trees

    def open(self, file: File, flags: int, ghost: bool) -> Fd:
        """Open a file as CRIU would.

        Args:
            file: its record.
            flags: of open(2).
            ghost: it is deleted.

        Raises:
            BlockingIOError: a lease is in the way.
            DetachedError: another file is there now, or it cannot be opened.
        """
        if flags & _NEVER_OPEN:
            raise DetachedError(f"{quote(file.path)} has flags {flags:#x}, which no open file has")
        with self._trees.open(file.mnt_id) as mount:
            try:
                if self._is_tree_fd(file, flags):
                    if not ghost:
                        _compare(file, kernel.fstat(mount.tree), mount.keeps_inodes)
                    return Fd(os.dup(mount.tree))
                open_it = self._open_ghost if ghost else self._open_in
                return open_it(mount, file, flags)
            except BlockingIOError:
                raise  # CRIU expects it where it breaks a lease (restore_lease_prebreaking_state)
            except OSError as error:
                raise DetachedError(
                    f"can't open {quote(file.path)} on mount {file.mnt_id}: {why(error)}"
                ) from error

    def _is_tree_fd(self, file: File, flags: int) -> bool:
        """Tell whether what is opened is the fd of an anonymous tree, or may be.

        Of an O_PATH fd of the root nobody can tell. All of them become one: either way the
        mount can be attached by it, and is dissolved with the last of them.
        """
        mount = self._context.plan.mounts[file.mnt_id]
        wanted = bool(mount.anonymous) and not mount.parent and file.path == paths.ROOT
        return wanted and flags & (os.O_PATH | os.O_NOFOLLOW) == os.O_PATH

    def _open_in(self, mount: Realised, file: File, flags: int) -> Fd:
        """Open a file beneath its mount's root, in two steps.

        The first, O_PATH, shows what is there without any effect on it: opening a
        device or a FIFO that someone put in a file's place may have one.
        """
        here = paths.stat_at(mount.tree, file.path)
        _compare(file, here, mount.keeps_inodes)
        flags |= os.O_CLOEXEC
        if file.path == paths.ROOT and not stat.S_ISDIR(file.mode):
            fd = self._open_root(mount, file, flags)
            found = kernel.fstat(fd)
        else:
            fd, found = kernel.open_beneath(mount.tree, file.path, flags)
        if (found.dev, found.ino, found.rdev) != (here.dev, here.ino, here.rdev):
            fd.close()
            raise DetachedError(f"{quote(file.path)} was replaced while it was restored")
        return fd

    def _open_root(self, mount: Realised, file: File, flags: int) -> Fd:
        """Open the one file of a mount of a file: there is no name beneath the root."""
        tree = mount.tree
        if flags & os.O_PATH and not flags & os.O_NOFOLLOW:
            return kernel.open_tree(tree, b"", kernel.AT_EMPTY_PATH | kernel.OPEN_TREE_CLOEXEC)
        handle = (file.handle.type, file.handle.bytes) if file.handle else None
        if handle and not mount.keeps_inodes:
            handle = kernel.name_to_handle(tree)
        return self._open_linked(tree, tree, handle, flags)

    def _open_ghost(self, mount: Realised, file: File, flags: int) -> Fd:
        """Open a deleted file, of which an O_PATH fd is kept."""
        kept = self._trees.open_ghost(file)
        if flags & os.O_PATH and flags & os.O_NOFOLLOW:
            return kept  # it is such an fd
        with kept:
            handle = kernel.name_to_handle(kept) if flags & os.O_NOFOLLOW else None
            return self._open_linked(mount.tree, kept, handle, flags | os.O_CLOEXEC)

    def _open_linked(self, tree: int, fd: int, handle: tuple[int, bytes] | None, flags: int) -> Fd:
        """Open a file again that no name leads to, by its link in procfs.

        That link is one itself, so what had O_NOFOLLOW is opened by its handle.
        open_by_handle_at(2) wants an fd that is no O_PATH one to tell the mount.

        Args:
            tree: tree fd of its mount.
            fd: of the file.
            handle: its handle, for O_NOFOLLOW.
            flags: of open(2).
        """
        with self._context.store.get_inherited(PROC_KEY) as proc:
            if not flags & os.O_NOFOLLOW:
                return Fd.open(b"self/fd/%d" % fd, flags, proc)
            if handle is None:
                raise DetachedError("a file that was opened with O_NOFOLLOW has no handle")
            with Fd.open(b"self/fd/%d" % tree, os.O_RDONLY, proc) as mount:
                return kernel.open_by_handle(mount, handle, flags)


def _compare(file: File, found: FileStat, keeps_inodes: bool) -> None:
    """Refuse another file, and say how this one has changed: whether it may, CRIU decides.

    Args:
        file: the record.
        found: what is there.
        keeps_inodes: inode numbers are those of the dump.

    Raises:
        DetachedError: it is another file.
    """
    where = f"{quote(file.path)} on mount {file.mnt_id}"
    if stat.S_IFMT(found.mode) != stat.S_IFMT(file.mode):
        raise DetachedError(f"{where} is {type_name(found.mode)}, it was {type_name(file.mode)}")
    if found.rdev != file.rdev:
        raise DetachedError(
            f"{where} is device {format_dev(found.rdev)}, it was {format_dev(file.rdev)}"
        )
    if keeps_inodes and found.ino != file.ino:
        raise DetachedError(f"{where} is another file (inode {found.ino}), it was inode {file.ino}")
    # CRIU names the file by its key when it refuses one (open_path, criu/files-reg.c).
    if found.mode != file.mode and not is_terminal(file):  # CRIU sets a terminal's
        log.warn(f"{where} has mode {found.mode:o}, it had {file.mode:o}")
    if found.size != file.size:
        log.warn(f"{where} has {found.size} bytes, it had {file.size}")
