# SPDX-License-Identifier: GPL-2.0-only
"""The detached-mount records: proto/criu_detached.proto as Python classes."""

from __future__ import annotations

from criu_detached.images.wire import BYTES, BYTES_LIST, FIXED, UINT, ListOf, Message

# Version of the record file. Increase it when an older plugin would misread a newer file.
FORMAT = 2

# Values of the enum Origin: how a mount is realised.
BIND_SOURCE = 1
REMOUNT = 2
RECREATED = 3
SUPPLIED = 4


class Header(Message):
    """The first entry: by what, and where, the file was written."""

    FIELDS = ((1, "format", UINT), (2, "boot_id", BYTES), (3, "machine", BYTES))
    format: int
    boot_id: bytes
    machine: bytes


class Superblock(Message):
    """What tells one filesystem instance from another."""

    FIELDS = (
        (1, "fs_type", BYTES),
        (2, "magic", UINT),
        (3, "dev", UINT),
        (4, "fsid", UINT),
        (5, "uuid", BYTES),
    )
    fs_type: bytes
    magic: int
    dev: int
    fsid: int
    uuid: bytes


class BindSource(Message):
    """An attached mount that shows the detached mount's root."""

    FIELDS = (
        (1, "mnt_id", UINT),
        (2, "in_namespace", UINT),
        (3, "mountpoint", BYTES),
        (4, "path", BYTES),
        (5, "id_mapped", UINT),
    )
    mnt_id: int
    in_namespace: int
    mountpoint: bytes
    path: bytes
    id_mapped: int


class Handle(Message):
    """A file handle, as name_to_handle_at(2) gives it."""

    FIELDS = ((1, "type", UINT), (2, "bytes", BYTES))
    type: int
    bytes: bytes


class Mount(Message):
    """A detached mount."""

    FIELDS = (
        (1, "mnt_id", UINT),
        (2, "origin", UINT),
        (3, "root", BYTES),
        (4, "root_type", UINT),
        (5, "attr", UINT),
        (6, "superblock", Superblock),
        (7, "bind_source", BindSource),
        (8, "uid_map", BYTES_LIST),
        (9, "gid_map", BYTES_LIST),
        (10, "root_deleted", UINT),
        (11, "anonymous", UINT),
        (12, "parent", UINT),
        (13, "place", BYTES),
        (14, "filesystem", UINT),
        (15, "root_handle", Handle),
        (20, "private", UINT),
    )
    mnt_id: int
    origin: int
    root: bytes
    root_type: int
    attr: int
    superblock: Superblock | None
    bind_source: BindSource | None
    uid_map: list[bytes]
    gid_map: list[bytes]
    root_deleted: int
    anonymous: int
    parent: int
    place: bytes
    filesystem: int
    root_handle: Handle | None
    private: int


def is_in_namespace(mount: Mount) -> bool:
    """Tell whether a mount is cloned from the dumped mount namespace."""
    source = mount.bind_source
    return mount.origin == BIND_SOURCE and source is not None and bool(source.in_namespace)


class File(Message):
    """A file on a detached mount; CRIU knows it by mount id and inode."""

    FIELDS = (
        (1, "mnt_id", UINT),
        (2, "ino", UINT),
        (3, "dev", UINT),
        (4, "mode", UINT),
        (5, "path", BYTES),
        (6, "rdev", UINT),
        (7, "handle", Handle),
        (8, "size", UINT),
    )
    mnt_id: int
    ino: int
    dev: int
    mode: int
    path: bytes
    rdev: int
    handle: Handle | None
    size: int


class Time(Message):
    """A point in time, as stat(2) has it; before the epoch sec is a two's complement."""

    FIELDS = ((1, "sec", UINT), (2, "nsec", UINT))
    sec: int
    nsec: int


class Xattr(Message):
    """An extended attribute, xattr(7)."""

    FIELDS = ((1, "name", BYTES), (2, "value", BYTES))
    name: bytes
    value: bytes


class Inode(Message):
    """What it takes to make a file anew, besides what its File says."""

    FIELDS = (
        (1, "uid", UINT),
        (2, "gid", UINT),
        (3, "atime", Time),
        (4, "mtime", Time),
        (5, "size", UINT),
        (6, "target", BYTES),
        (7, "xattrs", ListOf(Xattr)),
        (8, "data_at", UINT),
        (9, "data_size", UINT),
    )
    uid: int
    gid: int
    atime: Time | None
    mtime: Time | None
    size: int
    target: bytes
    xattrs: list[Xattr]
    data_at: int
    data_size: int


class Ghost(Message):
    """A file whose name is gone; see the schema."""

    FIELDS = ((1, "file", File), (2, "unnamed", UINT), (3, "inode", Inode), (4, "alias", BYTES))
    file: File | None
    unnamed: int
    inode: Inode | None
    alias: bytes


class Loop(Message):
    """A loop device, loop(4)."""

    FIELDS = (
        (1, "file", BYTES),
        (2, "offset", UINT),
        (3, "size_limit", UINT),
        (4, "flags", UINT),
        (5, "block_size", UINT),
        (6, "partition", UINT),
    )
    file: bytes
    offset: int
    size_limit: int
    flags: int
    block_size: int
    partition: int


class BlockDevice(Message):
    """A block device, and what tells it from another."""

    FIELDS = (
        (1, "path", BYTES),
        (2, "size", UINT),
        (3, "type", BYTES),
        (4, "uuid", BYTES),
        (5, "uuid_sub", BYTES),
        (6, "checksum", UINT),
        (7, "loop", Loop),
    )
    path: bytes
    size: int
    type: bytes
    uuid: bytes
    uuid_sub: bytes
    checksum: int
    loop: Loop | None


class Layer(Message):
    """A directory that an overlay is made of."""

    FIELDS = (
        (1, "option", BYTES),
        (2, "path", BYTES),
        (3, "superblock", Superblock),
        (4, "ino", UINT),
    )
    option: bytes
    path: bytes
    superblock: Superblock | None
    ino: int


class Filesystem(Message):
    """A superblock that no attached mount shows."""

    FIELDS = (
        (1, "id", UINT),
        (2, "superblock", Superblock),
        (3, "source", BYTES),
        (4, "options", BYTES_LIST),
        (8, "fresh", UINT),
        (9, "keeps_inodes", UINT),
        (10, "devices", ListOf(BlockDevice)),
        (11, "layers", ListOf(Layer)),
    )
    id: int
    superblock: Superblock | None
    source: bytes
    options: list[bytes]
    fresh: int
    keeps_inodes: int
    devices: list[BlockDevice]
    layers: list[Layer]


class Node(Message):
    """A file of a filesystem that is made anew."""

    FIELDS = (
        (1, "filesystem", UINT),
        (2, "path", BYTES),
        (3, "mode", UINT),
        (4, "rdev", UINT),
        (5, "inode", Inode),
        (6, "same_as", BYTES),
    )
    filesystem: int
    path: bytes
    mode: int
    rdev: int
    inode: Inode | None
    same_as: bytes


class ExtFile(Message):
    """An open file that CRIU left to the DUMP_EXT_FILE hook."""

    FIELDS = (
        (1, "id", UINT),
        (2, "flags", UINT),
        (3, "pos", UINT),
        (4, "mnt_id", UINT),
        (5, "ino", UINT),
    )
    id: int
    flags: int
    pos: int
    mnt_id: int
    ino: int


class BoundSocket(Message):
    """The name of a bound unix socket, and where it leads to."""

    FIELDS = (
        (1, "id", UINT),
        (2, "mnt_id", UINT),
        (3, "name", BYTES),
        (4, "directory", BYTES),
        (5, "deleted", UINT),
    )
    id: int
    mnt_id: int
    name: bytes
    directory: bytes
    deleted: int


class Trailer(Message):
    """The last entry: says that nothing is missing and nothing was changed."""

    FIELDS = ((1, "entries", FIXED), (2, "crc32", FIXED))
    entries: int
    crc32: int


class Entry(Message):
    """One entry of the record file; exactly one field is set."""

    FIELDS = (
        (1, "header", Header),
        (2, "mount", Mount),
        (3, "file", File),
        (4, "ext_file", ExtFile),
        (5, "ghost", Ghost),
        (6, "bound_socket", BoundSocket),
        (7, "filesystem", Filesystem),
        (8, "node", Node),
        (15, "trailer", Trailer),
    )
    header: Header | None
    mount: Mount | None
    file: File | None
    ext_file: ExtFile | None
    ghost: Ghost | None
    bound_socket: BoundSocket | None
    filesystem: Filesystem | None
    node: Node | None
    trailer: Trailer | None

    def content(self) -> Message | None:
        """Return the one field that is set; None if none or several are."""
        found = [value for value in self.__dict__.values() if value is not None]
        return found[0] if len(found) == 1 else None
