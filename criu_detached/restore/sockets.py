# SPDX-License-Identifier: GPL-2.0-only
"""The restore of bound unix sockets: their names are made to lead to the realised mount.

CRIU binds and connects the sockets. Before, plugin/shim/restore_sockets.c has the task's root and
working directory changed here, and puts the root back when CRIU returns to where it was.

- A relative name is looked up from the working directory: that is set to the directory
  which the name starts from.
- An absolute name is looked up from the root: that is set to a small tree made for the
  name, in which a symlink stands for the directory of the socket's file. It leads to the
  task's working directory, by way of procfs, and that is set to the directory itself. So
  nothing is mounted in a task, and the socket has the name that it had.
"""

from __future__ import annotations

import os
import stat

from criu_detached import kernel, paths
from criu_detached.criu import log
from criu_detached.errors import DetachedError, quote, why
from criu_detached.images.records import RECREATED, BoundSocket, Mount
from criu_detached.kernel import namespaces

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from criu_detached.criu.host import Host
    from criu_detached.images.record_reader import Records

# struct sockaddr_un of unix(7); a name that fills it has no end mark
MAX_NAME = 108


class SocketNames:
    """The names of a restore's sockets."""

    def __init__(self, host: Host, records: Records) -> None:
        """Make what must be there before the tasks.

        Raises:
            DetachedError: a record is bad, or the kernel refuses.
        """
        self._host = host
        self._records = records.bound_sockets
        self._on_mount: dict[int, list[BoundSocket]] = {}
        self._roots: dict[bytes, bytes] = {}
        self._kept: dict[int, _Attributes] = {}
        for record in self._records.values():
            _check(record)
            self._on_mount.setdefault(record.mnt_id, []).append(record)
            self._make_root(record)
            host.criu.socket_name_add(record.id, record.name, bool(record.deleted))

    def _make_root(self, record: BoundSocket) -> None:
        directory = _directory_of_name(record)
        if not directory or directory in self._roots:
            return
        key = b"criu-detached-root-%d" % len(self._roots)
        try:
            self._host.fds.add_inherited(_root_for(directory), key)
        except OSError as error:
            raise DetachedError(
                f"can't make a root for the socket {quote(record.name)}: {error}"
            ) from error
        self._roots[directory] = key

    def check_directories(self, mount: Mount, tree: int) -> None:
        """Look for what a mount's names start from, before there is a task.

        Args:
            mount: its record.
            tree: its tree fd.

        Raises:
            DetachedError: it is not there, or nothing can be made there.
        """
        records = self._on_mount.get(mount.mnt_id, [])
        for record in records:
            start = _start_of(record, tree)
            try:
                if mount.origin == RECREATED:
                    self._kept[record.id] = _Attributes(record, start)
            finally:
                os.close(start)
        if records and kernel.fstatfs(tree).flags & os.ST_RDONLY:
            raise DetachedError(
                f"the socket {quote(records[0].name)} cannot be bound on mount"
                f" {mount.mnt_id}, whose filesystem is read-only by now"
            )

    def lead(self, number: int, tree_fd: Callable[[int], int]) -> None:
        """Make a name lead to its mount, in a task.

        Args:
            number: id of the record.
            tree_fd: gives a new fd of the tree of a mount id.

        Raises:
            DetachedError: there is no such record, or no such directory any more.
        """
        record = self._records.get(number)
        if record is None:
            raise DetachedError(f"no record of socket {number}: are the images complete?")
        tree = tree_fd(record.mnt_id)
        try:
            directory = _start_of(record, tree)
        finally:
            os.close(tree)
        try:
            self._change_to(record, directory)
        except OSError as error:
            raise DetachedError(
                f"can't make the socket's name {quote(record.name)} lead to mount"
                f" {record.mnt_id}: {why(error)}"
            ) from error
        finally:
            os.close(directory)

    def bound(self, number: int) -> None:
        """Give a directory and the file that was made in it what they had, in a task.

        Args:
            number: id of the record; its name starts in the working directory.
        """
        kept = self._kept.get(number)
        if kept is not None:
            kept.give()

    def _change_to(self, record: BoundSocket, directory: int) -> None:
        name = _directory_of_name(record)
        if name:
            root = self._host.fds.get_inherited(self._roots[name])
            try:
                os.fchdir(root)
                os.chroot(b".")
            finally:
                os.close(root)
        os.fchdir(directory)
        if record.name.startswith(b"/") and not name:
            os.chroot(b".")


class _Attributes:
    """What a bind changes of a directory, and what the socket's file had that was there.

    CRIU itself restores mode and owner.
    """

    def __init__(self, record: BoundSocket, start: int) -> None:
        """Look at them, where they are made anew.

        Args:
            record: of the socket.
            start: where its name starts.

        Raises:
            OSError: the file cannot be looked at.
        """
        self._name = record.name.rpartition(b"/")[2] if record.name[:1] == b"/" else record.name
        self._directory = self._name.rpartition(b"/")[0] or paths.ROOT
        self._times = _times(os.stat(self._directory, dir_fd=start))
        self._file_times: tuple[int, int] | None = None
        self._xattrs: dict[str, bytes] = {}
        if record.deleted:
            return
        path = b"/proc/self/fd/%d/%s" % (start, self._name)
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            return  # no task could see it
        if stat.S_ISSOCK(found.st_mode):
            self._file_times = _times(found)
            self._xattrs = {
                name: os.getxattr(path, name, follow_symlinks=False)
                for name in os.listxattr(path, follow_symlinks=False)
            }

    def give(self) -> None:
        """Give them to those that are there now, beneath the working directory."""
        try:
            for name, value in self._xattrs.items():
                os.setxattr(self._name, name, value, follow_symlinks=False)
            if self._file_times:
                os.utime(self._name, ns=self._file_times, follow_symlinks=False)
            os.utime(self._directory, ns=self._times, follow_symlinks=False)
        except OSError as error:
            log.warn(
                f"the file of the socket {quote(self._name)} has other times or extended"
                f" attributes than it had: {why(error)}"
            )


def _times(found: os.stat_result) -> tuple[int, int]:
    return found.st_atime_ns, found.st_mtime_ns


def _check(record: BoundSocket) -> None:
    """Refuse a record that no dump writes."""
    name = record.name
    parts = name.split(b"/")
    if not 0 < len(name) <= MAX_NAME or b"\0" in name or b".." in parts or not parts[-1]:
        raise DetachedError(f"a socket record has the invalid name {quote(name)}")
    directory = record.directory
    if directory != paths.ROOT and paths.is_invalid(directory):
        raise DetachedError(f"a socket record has the invalid path {quote(directory)}")


def _directory_of_name(record: BoundSocket) -> bytes:
    """The directory part of an absolute name, "a/b"; empty for one that is the root."""
    if not record.name.startswith(b"/"):
        return b""
    parts = record.name.split(b"/")[:-1]
    return b"/".join(part for part in parts if part not in (b"", b"."))


def _start_of(record: BoundSocket, tree: int) -> int:
    """Open where a name starts from; the whole way to the socket must stay on the mount."""
    try:
        return _open_directory(record, tree)
    except OSError as error:
        raise DetachedError(
            f"the directory of the socket {quote(record.name)} on mount {record.mnt_id} is not"
            f" there: {why(error)}"
        ) from error


def _open_directory(record: BoundSocket, tree: int) -> int:
    flags = kernel.O_PATH | os.O_DIRECTORY
    start, _ = kernel.open_beneath(tree, record.directory, flags)
    within = record.name.rpartition(b"/")[0]
    if record.name.startswith(b"/") or not within:
        return start
    try:
        os.close(kernel.open_beneath(start, within, flags)[0])
    except OSError:
        os.close(start)
        raise
    return start


def _root_for(directory: bytes) -> int:
    """A tree in which a path leads to the working directory of whoever asks.

    Returns:
        An fd, the caller's; the tree is gone when all fds of it are closed.
    """
    names = directory.split(b"/")
    proc = names[0][:200] + b"-proc"  # beside the first name, and not it
    root = namespaces.root_with_proc(proc)
    try:
        at = b""
        for name in names[:-1]:
            at = at + b"/" + name if at else name
            os.mkdir(at, dir_fd=root)
            os.chmod(at, 0o755, dir_fd=root)  # whatever the umask: tasks are other users
        os.symlink(b"/" + proc + b"/self/cwd", directory, dir_fd=root)
    except OSError:
        os.close(root)
        raise
    return root
