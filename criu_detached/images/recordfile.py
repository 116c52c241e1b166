# SPDX-License-Identifier: GPL-2.0-only
"""The record file ``criu-detached.img``: written as records arise, read all at once.

Layout (docs/image-format.md): two magic numbers as in CRIU's images
(criu/include/magic.h), then entries of a 32-bit little-endian size and an ``Entry``
message. The last entry is a trailer with the number of entries and a checksum. Every
write overwrites the trailer with the new entries and a new one: the file is complete at
every moment, and a write that fails does so while the dump can fail.
"""

from __future__ import annotations

import os
from binascii import crc32

from criu_detached.errors import DetachedError, why
from criu_detached.images.records import (
    BIND_SOURCE,
    FORMAT,
    BoundSocket,
    Entry,
    ExtFile,
    File,
    Filesystem,
    Ghost,
    Header,
    Inode,
    Mount,
    Node,
    Trailer,
    is_in_namespace,
)
from criu_detached.images.wire import Message, WireError, decode, encode, varint
from criu_detached.paths import ROOT

NAME = "criu-detached.img"


def magics(own: int) -> bytes:
    """Return what a file among CRIU's images begins with: their common magic, and its own."""
    common = 0x54564319  # IMG_COMMON_MAGIC, criu/include/magic.h
    return common.to_bytes(4, "little") + own.to_bytes(4, "little")


OWN_MAGIC = 0x44544D31  # "1MTD"; CRIU's own are coordinates of towns

MAX_FILE = 64 << 20  # bytes; half a million files
MAX_ENTRY = 256 << 10  # bytes; a path has at most 4096, an extended attribute 64 KiB

_SECOND = 1_000_000_000  # nanoseconds

_MAGICS = magics(OWN_MAGIC)


# Which field of Entry holds a record, as its tag on the wire.
_ENTRY_TAGS = {kind: tag for _, kind, tag in Entry._tags}


def _framed(record: Message) -> bytes:
    """The record as the one field of an Entry, which is written here for speed."""
    payload = encode(record)
    payload = _ENTRY_TAGS[type(record)] + varint(len(payload)) + payload
    return len(payload).to_bytes(4, "little") + payload


_TRAILER_SIZE = len(_framed(Trailer()))  # whatever its numbers


class RecordWriter:
    """Writes the records of one dump into CRIU's image directory."""

    def __init__(self, image_dir: int, header: Header) -> None:
        """Create the file.

        Args:
            image_dir: fd of the directory; it stays the caller's.
            header: the first record.

        Raises:
            DetachedError: it cannot be written.
        """
        self._pending = bytearray(_MAGICS)
        self._crc = 0
        self._entries = 0
        self._end = 0
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._fd = os.open(NAME, flags, 0o600, dir_fd=image_dir)
        except OSError as error:
            raise DetachedError(f"can't create {NAME} in the image directory: {error}") from error
        self._append(header)

    def mount(self, record: Mount) -> None:
        """Append a mount; raises DetachedError when it cannot be written."""
        self._append(record)

    def file(self, record: File) -> None:
        """Append a file; raises DetachedError when it cannot be written."""
        self._append(record)

    def ext_file(self, record: ExtFile) -> None:
        """Append an EXT file; raises DetachedError when it cannot be written."""
        self._append(record)

    def ghost(self, record: Ghost) -> None:
        """Append a deleted file; raises DetachedError when it cannot be written."""
        self._append(record)

    def filesystem(self, record: Filesystem) -> None:
        """Append a filesystem; raises DetachedError when it cannot be written."""
        self._append(record)

    def node(self, record: Node) -> None:
        """Append a node, for the next flush; raises DetachedError when there are too many."""
        self._add(record)

    def bound_socket(self, record: BoundSocket) -> None:
        """Append the name of a socket; raises DetachedError when it cannot be written."""
        self._append(record)

    def framed(self, records: bytes, entries: int) -> None:
        """Append entries that are framed already, for the next flush.

        Args:
            records: the entries.
            entries: how many.

        Raises:
            DetachedError: there are too many.
        """
        self._check_size(len(records))
        self._pending += records
        self._entries += entries

    def flush(self) -> None:
        """Write what is pending; raises DetachedError when it cannot be written."""
        if not self._pending:
            return
        crc = crc32(self._pending, self._crc)
        data = self._pending + _framed(Trailer(entries=self._entries, crc32=crc))
        try:
            written = os.pwrite(self._fd, data, self._end)
        except OSError as error:
            raise DetachedError(f"can't write {NAME}: {error}") from error
        if written != len(data):
            raise DetachedError(f"can't write {NAME}: the image directory is full")
        self._end += len(self._pending)
        self._crc = crc
        self._pending.clear()

    def _append(self, record: Message) -> None:
        self._add(record)
        self.flush()

    def _add(self, record: Message) -> None:
        new = _framed(record)
        if len(new) > MAX_ENTRY:
            raise DetachedError(f"a record of {len(new)} bytes is over the limits of {NAME}")
        self._check_size(len(new))
        self._pending += new
        self._entries += 1

    def _check_size(self, more: int) -> None:
        if self._end + len(self._pending) + more + _TRAILER_SIZE > MAX_FILE:
            raise DetachedError(f"{NAME} would grow over its limit: too many files")


class Records:
    """All records of an image directory, checked.

    The files are decoded when one is asked for: plugin/fast/known_files.c reads them from
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
        entries = _payloads(data)
        self.header = _checked_header(data, entries)
        for payload in entries[1:-1]:
            if payload[:1] == _ENTRY_TAGS[File]:
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
            source = record.bind_source
            _bound(record.mnt_id, 32)
            _bound(source.mnt_id if source else 0, 31)
            _bound(record.root_type, 32)
            if record.parent:
                self._check_parent(record)
            if self.mounts.setdefault(record.mnt_id, record) is not record:
                raise WireError(f"mount {record.mnt_id} is there twice")
        elif isinstance(record, Filesystem):
            _bound(record.id, 32)
            if self.filesystems.setdefault(record.id, record) is not record:
                raise WireError(f"filesystem {record.id} is there twice")
            _bound_devices(record)
        elif isinstance(record, Node):
            if record.filesystem not in self.filesystems:
                raise WireError("a node is of a filesystem that is not there")
            _bound(record.mode, 32)
            _bound_inode(record.inode)
            self.nodes.setdefault(record.filesystem, []).append(record)
        elif isinstance(record, Ghost):
            file = record.file
            if file is None or file.mnt_id not in self.mounts:
                raise WireError("a deleted file is on a mount that is not there")
            if file.path == ROOT and not self.mounts[file.mnt_id].root_deleted:
                raise WireError(f"the root of mount {file.mnt_id} is deleted, and it is not")
            _bound(file.mode, 32)
            _bound(file.handle.type if file.handle else 0, 31)
            _bound_inode(record.inode)
            if self.ghosts.setdefault((file.mnt_id, file.ino), record) is not record:
                raise WireError(f"inode {file.ino} of mount {file.mnt_id} is there twice")
        elif isinstance(record, ExtFile):
            _bound(record.id, 32)
            _bound(record.flags, 31)
            _bound(record.pos, 63)
            if self.ext_files.setdefault(record.id, record) is not record:
                raise WireError(f"external file {record.id:#x} is there twice")
        elif isinstance(record, BoundSocket):
            _bound(record.id, 31)
            if not record.id or record.mnt_id not in self.mounts:
                raise WireError("a socket has no id, or is on a mount that is not there")
            if self.bound_sockets.setdefault(record.id, record) is not record:
                raise WireError(f"socket {record.id} is there twice")
        else:
            raise WireError("an entry holds no record, or several")

    def _check_parent(self, mount: Mount) -> None:
        """An anonymous tree is put together where its root was cloned, parents first."""
        top = self.mounts.get(mount.parent)
        if top is None or not (top.anonymous and mount.anonymous and mount.place):
            raise WireError(f"mount {mount.mnt_id} is attached to none")
        while top.parent:
            top = self.mounts[top.parent]
        if is_in_namespace(mount) and top.origin == BIND_SOURCE and not is_in_namespace(top):
            raise WireError(f"mount {mount.mnt_id} and what it is attached to are far apart")


def _bound_inode(inode: Inode | None) -> None:
    if inode is None:
        return
    _bound(inode.uid, 32)
    _bound(inode.gid, 32)
    _bound(inode.size, 63)
    _bound(inode.data_at, 62)
    _bound(inode.data_size, 62)
    for time in (inode.atime, inode.mtime):
        if time and time.nsec >= _SECOND:
            raise WireError(f"{time.nsec} nanoseconds are larger than a second")


def _bound_devices(filesystem: Filesystem) -> None:
    for device in filesystem.devices:
        if device.loop:
            _bound(device.loop.offset, 62)
            _bound(device.loop.size_limit, 62)
            _bound(device.loop.flags, 32)
            _bound(device.loop.block_size, 32)


def _bound(number: int, bits: int) -> None:
    """Refuse what the kernel and CRIU keep in fewer bits than a record could."""
    if number >> bits:
        raise WireError(f"{number} is larger than {bits} bits")


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


def damaged(error: WireError) -> DetachedError:
    """Say of a record file that it is damaged."""
    return DetachedError(
        f"{NAME} is damaged ({error}): restore from an undamaged copy of the images"
    )


def _read(image_dir: int) -> bytes:
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


def _payloads(data: bytes) -> list[bytes]:
    """Return each entry's message; the framing alone is checked."""
    if data[: len(_MAGICS)] != _MAGICS:
        raise WireError("it does not start with the magic numbers of a record file")
    payloads = []
    at = len(_MAGICS)
    end = len(data)
    while at < end:
        size = int.from_bytes(data[at : at + 4], "little")
        at += 4 + size
        if size == 0:
            raise WireError("an entry is empty")
        if size > MAX_ENTRY:
            raise WireError(f"an entry of {size} bytes is over the limit of {MAX_ENTRY}")
        if at > end:
            raise WireError("the last entry is cut off")
        payloads.append(data[at - size : at])
    return payloads


def _checked_header(data: bytes, entries: list[bytes]) -> Header:
    """Return the header of a file whose version is known and whose trailer is right."""
    if len(entries) < 2 or not isinstance(trailer := decode(Entry, entries[-1]).content(), Trailer):
        raise WireError("its end is missing")
    header = decode(Entry, entries[0]).content()
    if not isinstance(header, Header):
        raise WireError("its header is missing")
    if header.format != FORMAT:
        raise DetachedError(
            f"{NAME} has format {header.format}, this plugin reads format {FORMAT}:"
            " restore with the version of criu-detached that dumped it"
        )
    if trailer.entries != len(entries) - 1:
        raise WireError(f"it holds {len(entries) - 1} entries instead of {trailer.entries}")
    if trailer.crc32 != crc32(data[: -4 - len(entries[-1])]):
        raise WireError("its checksum is wrong")
    return header
