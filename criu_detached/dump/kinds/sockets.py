# SPDX-License-Identifier: GPL-2.0-only
"""The dump of bound unix sockets: where the file of a socket is on its detached mount.

CRIU dumps the sockets. It asks the kernel for a socket's file, and is given a stand-in
for it on a mount that it knows (plugin/shim/dump_sockets.h); what is recorded here is the way from
the socket's name to the mount.
"""

from __future__ import annotations

import os

from criu_detached import kernel, paths
from criu_detached.dump.describe.mount import DetachedMount
from criu_detached.errors import DetachedError, quote, why
from criu_detached.images.records import BoundSocket, Mount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.criu.criu import Criu
    from criu_detached.dump.describe.sources import SourceFinder
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

    def __init__(self, criu: Criu, finder: SourceFinder) -> None:
        self._criu = criu
        self._finder = finder
        self._records: dict[tuple[int, bytes, bytes, int], BoundSocket] = {}
        self._places: dict[tuple[int, bytes], int] = {}

    def note(
        self, name: bytes, file: Name, links: int, mount: DetachedMount
    ) -> tuple[SocketAnswer, BoundSocket | None]:
        """Describe a socket's name.

        Args:
            name: as the socket was bound to it.
            file: its file's path from the mount's root, and whether that is gone.
            links: names that the file has.
            mount: that it is on.

        Returns:
            What CRIU is to be told, and the record, if it is a new one: the sockets that a
            listening one has accepted have its name.

        Raises:
            DetachedError: the restored socket could not be bound to that name.
        """
        record = describe_socket(name, file, mount.record)
        place = (record.mnt_id, record.directory)
        number = self._places.setdefault(place, len(self._places) + 1)
        key = (*place, name, record.deleted)
        known = self._records.setdefault(key, record)
        if known is record:
            if links > 1 - file.deleted:
                raise DetachedError(
                    "its file has another name, which would not lead to it any more: remove that"
                )
            check_directory(record, mount)
            record.id = len(self._records)
        inside = stand_in(mount, self._criu, self._finder)
        answer = SocketAnswer(known.id, inside, number, record.deleted)
        return answer, record if known is record else None


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
    directory = paths.directory_of_socket(record.name, record.directory)
    if mount.memory is not None:
        assert mount.record.bind_source is not None
        mount.memory.needs_directory(paths.join(mount.record.bind_source.path, directory))
    elif mount.root >= 0:
        _check_in_source(mount.root, directory)


def _check_in_source(root: int, directory: bytes) -> None:
    try:
        fd, _ = kernel.open_beneath(root, directory, kernel.O_PATH | os.O_DIRECTORY)
    except OSError as error:
        raise DetachedError(
            f"the bind source does not show its directory {quote(directory)}: {why(error)}"
        ) from error
    os.close(fd)


def stand_in(mount: DetachedMount, criu: Criu, finder: SourceFinder) -> int:
    """An fd of something on a mount that CRIU knows in the dumped namespaces; -1: no need.

    At restore CRIU enters the namespace of that mount before it binds the socket.

    Args:
        mount: that the socket's file is on.
        criu: CRIU.
        finder: gives the processes of the dumped namespaces.

    Raises:
        DetachedError: there is none.
    """
    if not criu.dumps_mount_namespace():
        return -1
    source = mount.record.bind_source
    if source is not None and source.in_namespace:
        return os.dup(mount.source)
    for pid in finder.dumped_pids():
        try:
            fd = os.open(f"/proc/{pid}/root", kernel.O_PATH)
        except OSError:
            continue
        if criu.mount_known(kernel.fstat(fd).mnt_id):
            return fd
        os.close(fd)
    raise DetachedError("no dumped process has its root on a mount that CRIU knows")
