# SPDX-License-Identifier: GPL-2.0-only
"""Names, and directories on the way to them, that are there only while ghosts are made."""

from __future__ import annotations

import errno
import os

from criu_detached import kernel, paths
from criu_detached.errors import DetachedError, quote
from criu_detached.kernel.fds import Fd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# Appended to a name that something else has by now, as CRIU does (open_path, criu/files-reg.c).
TAKEN = b".cr_link"

_TRIES = 100
_NAME_MAX = 255  # bytes, linux/limits.h

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class TemporaryNames:
    """Names beneath some directories; close() takes all of them away.

    The times of the directories that were there before are then as they were.
    """

    def __init__(self, proc: int) -> None:
        """Begin with none.

        Args:
            proc: fd of a procfs that shows this process its fds; it stays the caller's.
        """
        self._proc = proc
        self._names: list[tuple[int, bytes, bool]] = []  # parent, name, is it a directory?
        self._parents: dict[tuple[int, bytes], tuple[Fd, bytes]] = {}
        self._times: list[tuple[int, int, int]] = []  # directory, access and modification

    def close(self) -> None:
        """Take every name away; raises OSError when one cannot be, but not before the others."""
        failed = None
        for parent, name, is_directory in reversed(self._names):
            try:
                (os.rmdir if is_directory else os.unlink)(name, dir_fd=parent)
            except OSError as error:
                failed = failed or error
        try:
            for directory, atime, mtime in reversed(self._times):
                os.utime(directory, ns=(atime, mtime))
        finally:
            for fd, _ in self._parents.values():
                fd.close()
        if failed:
            raise failed

    def add(self, parent: int, name: bytes, *, is_directory: bool) -> None:
        """Take note of a name that was made, for close()."""
        self._names.append((parent, name, is_directory))

    def open_parent(self, base: int, path: bytes) -> tuple[int, bytes]:
        """Open a directory beneath a base; it is made if it is not there.

        Args:
            base: fd of the root that the path starts from.
            path: of the directory.

        Returns:
            An fd, which close() closes, and the path that the directory has.

        Raises:
            DetachedError: it would have to be made where no name can be taken away.
            OSError: the kernel refuses it.
        """
        missing = []  # one may lie as deep as a path is long, so this is no recursion
        while (base, path) not in self._parents and path != paths.ROOT:
            path, name = paths.split(path)
            missing.append(name)
        if (base, path) not in self._parents:
            root = Fd.open(b"self/fd/%d" % base, _DIRECTORY, self._proc)
            self._parents[base, path] = root, path
        found = self._parents[base, path]
        for name in reversed(missing):
            path = paths.join(path, name)
            found = self._parents[base, path] = self._open_or_make(*found, name)
        return found

    def add_parent(self, base: int, path: bytes, fd: Fd, actual: bytes) -> None:
        """Let a directory that was just made be the one that open_parent() gives for a path.

        Args:
            base: as of open_parent().
            path: likewise.
            fd: of the directory; it is taken over.
            actual: the path that it has.
        """
        if (base, path) in self._parents:  # of another one that had the same name
            fd.close()
        else:
            self._parents[base, path] = fd, actual

    def note_times(self, directory: int) -> None:
        """Note the times of a directory, before a name is made in it.

        Raises:
            DetachedError: the name would have to stay there.
        """
        if kernel.fstat(directory).is_frozen:
            raise DetachedError(
                "a directory that deleted files were in is immutable or append-only"
                f" ({quote(os.readlink(b'self/fd/%d' % directory, dir_fd=self._proc))} on its"
                " mount): use chattr -ia on it for the restore"
            )
        found = os.fstat(directory)
        self._times.append((directory, found.st_atime_ns, found.st_mtime_ns))

    def _open_or_make(self, parent: int, path: bytes, name: bytes) -> tuple[Fd, bytes]:
        """Open a directory in another one, with the path that it has."""
        try:
            fd, _ = kernel.open_beneath(parent, name, _DIRECTORY)
        except OSError:
            name = self._make_directory(parent, name)
            fd, _ = kernel.open_beneath(parent, name, _DIRECTORY)
        return fd, paths.join(path, name)

    def _make_directory(self, parent: int, name: bytes) -> bytes:
        self.note_times(parent)
        name = first_free(name, lambda free: os.mkdir(free, 0o700, dir_fd=parent))
        self.add(parent, name, is_directory=True)
        return name


def first_free(name: bytes, make: Callable[[bytes], None]) -> bytes:
    """Make something under a name, or the first free one that begins so.

    Args:
        name: the one that it had.
        make: makes it under the name that it is given; raises FileExistsError if that is taken.

    Returns:
        The name that it has.

    Raises:
        OSError: every name is taken, or it cannot be made.
    """
    for number in range(_TRIES):
        suffix = TAKEN + (b"%d" % number if number > 1 else b"") if number else b""
        free = name[: _NAME_MAX - len(suffix)] + suffix
        try:
            make(free)
        except FileExistsError:
            continue
        return free
    raise FileExistsError(errno.EEXIST, "every name for it is taken", name)
