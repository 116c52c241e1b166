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

from criu_detached import kernel, paths
from criu_detached.errors import DetachedError, quote, why
from criu_detached.images.records import RECREATED
from criu_detached.kernel import namespaces
from criu_detached.restore.socket_attributes import SocketAttributes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.criu.host import Host
    from criu_detached.images.record_reader import Records
    from criu_detached.images.records import BoundSocket, Mount
    from criu_detached.kernel.fds import Fd
    from criu_detached.restore.trees import Trees

# struct sockaddr_un of unix(7); a name that fills it has no end mark
MAX_NAME = 108


class SocketNames:
    """The names of a restore's sockets."""

    def __init__(self, host: Host, records: Records) -> None:
        """Make what must be there before the tasks.

        Raises:
            DetachedError: a record is bad, or the kernel refuses.
        """
        self._store = host.fds
        self._records = records.bound_sockets
        self._on_mount: dict[int, list[BoundSocket]] = {}
        self._roots: dict[bytes, bytes] = {}
        self._attributes: dict[int, SocketAttributes] = {}
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
            with _root_for(directory) as root:
                self._store.add_inherited(root, key)
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
            with _open_start(record, tree) as start:
                if mount.origin == RECREATED:
                    self._attributes[record.id] = SocketAttributes(record, start)
        if records and kernel.fstatfs(tree).flags & os.ST_RDONLY:
            raise DetachedError(
                f"the socket {quote(records[0].name)} cannot be bound on mount"
                f" {mount.mnt_id}, whose filesystem is read-only by now"
            )

    def enter(self, number: int, trees: Trees) -> None:
        """Go to where a name leads to its mount, in a task.

        Args:
            number: id of the record.
            trees: the mounts.

        Raises:
            DetachedError: there is no such record, or no such directory any more.
        """
        record = self._records.get(number)
        if record is None:
            raise DetachedError(f"no record of socket {number}: are the images complete?")
        with trees.open(record.mnt_id) as mount:
            directory = _open_start(record, mount.tree)
        try:
            with directory:
                self._change_to(record, directory)
        except OSError as error:
            raise DetachedError(
                f"can't make the socket's name {quote(record.name)} lead to mount"
                f" {record.mnt_id}: {why(error)}"
            ) from error

    def bound(self, number: int) -> None:
        """Give a directory and the file that was made in it what they had, in a task.

        Args:
            number: id of the record; its name starts in the working directory.
        """
        attributes = self._attributes.get(number)
        if attributes is not None:
            attributes.give()

    def _change_to(self, record: BoundSocket, directory: int) -> None:
        name = _directory_of_name(record)
        if name:
            with self._store.get_inherited(self._roots[name]) as root:
                os.fchdir(root)
                os.chroot(b".")
        os.fchdir(directory)
        if record.name.startswith(b"/") and not name:
            os.chroot(b".")


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
    """Return the directory part of an absolute name, "a/b"; empty for one that is the root."""
    if not record.name.startswith(b"/"):
        return b""
    parts = record.name.split(b"/")[:-1]
    return b"/".join(part for part in parts if part not in (b"", b"."))


def _open_start(record: BoundSocket, tree: int) -> Fd:
    """Open the directory that a name starts from.

    The whole way to the socket must stay on the mount.
    """
    try:
        return _open_directory(record, tree)
    except OSError as error:
        raise DetachedError(
            f"the directory of the socket {quote(record.name)} on mount {record.mnt_id} is not"
            f" there: {why(error)}"
        ) from error


def _open_directory(record: BoundSocket, tree: int) -> Fd:
    flags = kernel.O_PATH | os.O_DIRECTORY
    start, _ = kernel.open_beneath(tree, record.directory, flags)
    within = record.name.rpartition(b"/")[0]
    if record.name.startswith(b"/") or not within:
        return start
    try:
        kernel.open_beneath(start, within, flags)[0].close()
    except OSError:
        start.close()
        raise
    return start


def _root_for(directory: bytes) -> Fd:
    """Make a tree in which a path leads to the working directory of whoever asks.

    Returns:
        An fd of it; the tree is gone when all its fds are closed.
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
        root.close()
        raise
    return root
