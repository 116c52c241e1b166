# SPDX-License-Identifier: GPL-2.0-only
"""The dump of bound unix sockets: where the file of a socket is on its detached mount.

CRIU dumps the sockets. It asks the kernel for a socket's file, and is given a stand-in
for it on a mount that it knows (plugin/shim/dump_sockets.h); what is recorded here is the way from
the socket's name to the mount.
"""

from __future__ import annotations

from criu_detached import kernel, paths
from criu_detached.errors import DetachedError, quote
from criu_detached.images.records import BoundSocket
from criu_detached.kernel.fds import Fd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.dump.context import DumpContext
    from criu_detached.dump.describe.mount import DetachedMount
    from criu_detached.dump.open_file import OpenFile
    from criu_detached.images.records import Mount
    from criu_detached.paths import Name

# UNIX_PATH_MAX: CRIU wants an end mark in it, and one byte more where the name is gone.
_MAX_NAME = 108


class SocketAnswer:
    """What CRIU is to be told of a socket's file (struct socket_answer of plugin/embed/host.h)."""

    __slots__ = ("deleted", "number", "place", "stand_in")

    def __init__(self, number: int, stand_in: int, place: int, deleted: int) -> None:
        self.number = number  # of the record
        self.stand_in = stand_in
        self.place = place
        self.deleted = deleted


class Sockets:
    """The names of the sockets that a dump has met on detached mounts."""

    def __init__(self, context: DumpContext) -> None:
        """Begin with none.

        Args:
            context: of the dump.
        """
        self._context = context
        self._records: dict[tuple[int, bytes, bytes, int], BoundSocket] = {}
        self._places: dict[tuple[int, bytes], int] = {}

    def note(self, name: bytes, file: OpenFile, mount: DetachedMount) -> SocketAnswer:
        """Record a socket's name.

        The sockets that a listening one has accepted have its name, and its record.

        Args:
            name: as the socket was bound to it.
            file: its file, with its path from the mount's root.
            mount: that it is on.

        Returns:
            What CRIU is to be told.

        Raises:
            DetachedError: the restored socket could not be bound to that name.
        """
        found = mount.locate(file)
        record = describe_socket(name, found, mount.record)
        place = (record.mnt_id, record.directory)
        number = self._places.setdefault(place, len(self._places) + 1)
        known = self._records.setdefault((*place, name, record.deleted), record)
        if known is record:
            _check_file(file, found)
            check_directory(record, mount)
            record.id = len(self._records)
        stand_in = self._open_stand_in(mount)
        answer = SocketAnswer(known.id, stand_in, number, record.deleted)
        if known is record:
            self._context.records.bound_socket(record)
        return answer

    def _open_stand_in(self, mount: DetachedMount) -> int:
        """An fd of something on a mount that CRIU knows in the dumped namespaces; -1: no need.

        At restore CRIU enters the namespace of that mount before it binds the socket.
        """
        if not self._context.criu.dumps_mount_namespace():
            return -1
        fd = mount.open_stand_in()
        if fd is not None:
            return fd.release()
        for pid in self._context.sources.dumped_pids():
            try:
                fd = Fd.open(f"/proc/{pid}/root", kernel.O_PATH)
            except OSError:
                continue
            if self._context.criu.mount_known(kernel.fstat(fd).mnt_id):
                return fd.release()
            fd.close()
        raise DetachedError("no dumped process has its root on a mount that CRIU knows")


def _check_file(file: OpenFile, name: Name) -> None:
    """Refuse a socket whose file has a name that is not its own."""
    if file.stat.nlink > (0 if name.deleted else 1):
        raise DetachedError(
            "its file has another name, which would not lead to it any more: remove that"
        )


def describe_socket(name: bytes, file: Name, mount: Mount) -> BoundSocket:
    """Make the record of a socket's name, without an id.

    Args:
        name: as the socket was bound to it.
        file: its file's path from the mount's root, and whether that is gone.
        mount: that it is on.

    Raises:
        DetachedError: the restored socket could not be bound to that name.
    """
    parts = name.split(b"/")
    if file.path == paths.ROOT:
        raise DetachedError("its mount is of this one file, on which no socket can be bound")
    if b".." in parts or not parts[-1]:
        raise DetachedError('it was bound to a name with "..", which cannot be followed again')
    if len(name) >= _MAX_NAME - file.deleted:
        raise DetachedError("its name is longer than CRIU restores")
    if mount.attr & kernel.MOUNT_ATTR_RDONLY:
        raise DetachedError("its mount is read-only by now: no socket can be bound on it")
    return BoundSocket(
        mnt_id=mount.mnt_id,
        name=name,
        directory=_directory(name, file.path),
        deleted=int(file.deleted),
    )


def _directory(name: bytes, path: bytes) -> bytes:
    """Where a relative name starts, or the directory of an absolute one, from its path."""
    absolute = name.startswith(b"/")
    end = name.rpartition(b"/")[2] if absolute else name.removeprefix(b"./")
    if path == end:
        return paths.ROOT
    if not path.endswith(b"/" + end):
        raise DetachedError(
            f"it was bound as {quote(name)} and is {quote(path)} now (renamed, or reached through"
            " a symlink)"
        )
    return path[: -len(end) - 1]


def check_directory(record: BoundSocket, mount: DetachedMount) -> None:
    """The restore binds in the directory of the name, which must be there then.

    Of a mount that the user will supply nothing is known yet.

    Args:
        record: of the socket.
        mount: that its file is on.

    Raises:
        DetachedError: it will not be, or nothing can be made in it.
    """
    if mount.read_only:
        raise DetachedError("its filesystem is read-only by now: no socket can be bound on it")
    if mount.record.root_deleted:
        raise DetachedError("its directory is deleted, so no socket can be bound there again")
    mount.check_socket_directory(paths.directory_of_socket(record.name, record.directory))
