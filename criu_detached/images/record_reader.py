# SPDX-License-Identifier: GPL-2.0-only
"""Reads the record file of a restore: all records of an image directory, each checked.

What is checked here is that the file is whole, that each record is there once and refers to
records before it, and that its numbers have room. Whether a dump could have written it is checked
by criu_detached/restore/checks.py.
"""

from __future__ import annotations

import os

from criu_detached.errors import DetachedError, why
from criu_detached.images import bounds
from criu_detached.images.message import Message
from criu_detached.images.recordfile import (
    ENTRY_TAGS,
    MAX_FILE,
    NAME,
    checked_header,
    damaged,
    payloads_of,
)
from criu_detached.images.records import (
    BIND_SOURCE,
    BoundSocket,
    Entry,
    ExtFile,
    File,
    Filesystem,
    Ghost,
    Mount,
    Node,
    is_in_namespace,
)
from criu_detached.images.wire import WireError, decode
from criu_detached.paths import ROOT


class Records:
    """All records of an image directory, checked.

    The files are decoded when one is asked for: plugin/fast/known_index.c reads them from
    ``data`` by itself, for speed.
    """

    def __init__(self, data: bytes) -> None:
        """Take a record file apart; raises WireError or DetachedError when it is bad."""
        self.data = data
        self.mounts: dict[int, Mount] = {}
        self.ext_files: dict[int, ExtFile] = {}
        self.ghosts: dict[tuple[int, int], Ghost] = {}
        self.filesystems: dict[int, Filesystem] = {}
        self.nodes: dict[int, list[Node]] = {}
        self.bound_sockets: dict[int, BoundSocket] = {}
        self._file_entries: list[bytes] = []
        self._files: dict[tuple[int, int], File] | None = None
        payloads = payloads_of(data)
        self.header = checked_header(data, payloads)
        for payload in payloads[1:-1]:
            if payload[:1] == ENTRY_TAGS[File]:
                self._file_entries.append(payload)
            else:
                self._add(decode(Entry, payload).content())

    @property
    def files(self) -> dict[tuple[int, int], File]:
        """The files by mount id and inode.

        Raises:
            WireError: they are damaged, or do not fit the mounts.
        """
        if self._files is None:
            files: dict[tuple[int, int], File] = {}
            for payload in self._file_entries:
                file = decode(Entry, payload).content()
                if not isinstance(file, File) or file.mnt_id not in self.mounts:
                    raise WireError("a file is on a mount that is not there")
                if files.setdefault((file.mnt_id, file.ino), file) is not file:
                    raise WireError(f"inode {file.ino} of mount {file.mnt_id} is there twice")
            self._files = files
        return self._files

    def _add(self, record: Message | None) -> None:
        if isinstance(record, Mount):
            self._add_mount(record)
        elif isinstance(record, Filesystem):
            self._add_filesystem(record)
        elif isinstance(record, Node):
            self._add_node(record)
        elif isinstance(record, Ghost):
            self._add_ghost(record)
        elif isinstance(record, ExtFile):
            self._add_ext_file(record)
        elif isinstance(record, BoundSocket):
            self._add_bound_socket(record)
        else:
            raise WireError("an entry holds no record, or several")

    def _add_mount(self, mount: Mount) -> None:
        bounds.check_mount(mount)
        if mount.parent:
            self._check_parent(mount)
        if self.mounts.setdefault(mount.mnt_id, mount) is not mount:
            raise WireError(f"mount {mount.mnt_id} is there twice")

    def _check_parent(self, mount: Mount) -> None:
        """An anonymous tree is put together where its root was cloned, parents first."""
        top = self.mounts.get(mount.parent)
        if top is None or not (top.anonymous and mount.anonymous and mount.place):
            raise WireError(f"mount {mount.mnt_id} is attached to none")
        while top.parent:
            top = self.mounts[top.parent]
        if is_in_namespace(mount) and top.origin == BIND_SOURCE and not is_in_namespace(top):
            raise WireError(f"mount {mount.mnt_id} and what it is attached to are far apart")

    def _add_filesystem(self, filesystem: Filesystem) -> None:
        bounds.check_filesystem(filesystem)
        if self.filesystems.setdefault(filesystem.id, filesystem) is not filesystem:
            raise WireError(f"filesystem {filesystem.id} is there twice")

    def _add_node(self, node: Node) -> None:
        if node.filesystem not in self.filesystems:
            raise WireError("a node is of a filesystem that is not there")
        bounds.check_node(node)
        self.nodes.setdefault(node.filesystem, []).append(node)

    def _add_ghost(self, ghost: Ghost) -> None:
        file = ghost.file
        if file is None or file.mnt_id not in self.mounts:
            raise WireError("a deleted file is on a mount that is not there")
        if file.path == ROOT and not self.mounts[file.mnt_id].root_deleted:
            raise WireError(f"the root of mount {file.mnt_id} is deleted, and it is not")
        bounds.check_ghost(file, ghost.inode)
        if self.ghosts.setdefault((file.mnt_id, file.ino), ghost) is not ghost:
            raise WireError(f"inode {file.ino} of mount {file.mnt_id} is there twice")

    def _add_ext_file(self, file: ExtFile) -> None:
        bounds.check_ext_file(file)
        if self.ext_files.setdefault(file.id, file) is not file:
            raise WireError(f"external file {file.id:#x} is there twice")

    def _add_bound_socket(self, socket: BoundSocket) -> None:
        bounds.check_bound_socket(socket)
        if not socket.id or socket.mnt_id not in self.mounts:
            raise WireError("a socket has no id, or is on a mount that is not there")
        if self.bound_sockets.setdefault(socket.id, socket) is not socket:
            raise WireError(f"socket {socket.id} is there twice")


def read_records(image_dir: int) -> Records:
    """Read and check the record file.

    Args:
        image_dir: fd of CRIU's image directory; it stays the caller's.

    Raises:
        DetachedError: it is missing, cut, changed, too large, or of another version.
    """
    try:
        return Records(_read(image_dir))
    except WireError as error:
        raise damaged(error) from error


def _read(image_dir: int) -> bytes:
    """Return what is in the record file, which may be anything.

    Raises:
        DetachedError: it cannot be read.
        WireError: it is too large.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        fd = os.open(NAME, flags, dir_fd=image_dir)
    except FileNotFoundError as error:
        raise DetachedError(
            f"{NAME} is missing from the image directory, but the images need it:"
            " copy the whole directory"
        ) from error
    except OSError as error:
        raise DetachedError(f"can't open {NAME}: {why(error)}") from error
    try:
        size = os.fstat(fd).st_size
        if size > MAX_FILE:
            raise WireError(f"it has {size} bytes, more than {MAX_FILE}")
        data = b""
        while len(data) <= size and (piece := os.read(fd, size + 1 - len(data))):
            data += piece
        return data
    except OSError as error:
        raise DetachedError(f"can't read {NAME}: {why(error)}") from error
    finally:
        os.close(fd)
