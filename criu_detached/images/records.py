# SPDX-License-Identifier: GPL-2.0-only
"""The detached-mount records: proto/criu_detached.proto as Python classes."""

from __future__ import annotations

from criu_detached.images.message import (
    Message,
    binaries,
    binary,
    fixed32,
    message,
    messages,
    uint,
)

# Version of the record file. Increase it when an older plugin would misread a newer file.
FORMAT = 2

# Values of the enum Origin: how a mount is realised.
BIND_SOURCE = 1
REMOUNT = 2
RECREATED = 3
SUPPLIED = 4


class Header(Message):
    """The first entry: by what, and where, the file was written."""

    format: int = uint(1)
    boot_id: bytes = binary(2)
    machine: bytes = binary(3)


class Superblock(Message):
    """What tells one filesystem instance from another."""

    fs_type: bytes = binary(1)
    magic: int = uint(2)
    dev: int = uint(3)
    fsid: int = uint(4)
    uuid: bytes = binary(5)


class BindSource(Message):
    """An attached mount that shows the detached mount's root."""

    mnt_id: int = uint(1)
    in_namespace: int = uint(2)
    mountpoint: bytes = binary(3)
    path: bytes = binary(4)
    id_mapped: int = uint(5)


class Handle(Message):
    """A file handle, as name_to_handle_at(2) gives it."""

    type: int = uint(1)
    bytes: bytes = binary(2)


class Mount(Message):
    """A detached mount."""

    mnt_id: int = uint(1)
    origin: int = uint(2)
    root: bytes = binary(3)
    root_type: int = uint(4)
    attr: int = uint(5)
    superblock: Superblock | None = message(6, Superblock)
    bind_source: BindSource | None = message(7, BindSource)
    uid_map: list[bytes] = binaries(8)
    gid_map: list[bytes] = binaries(9)
    root_deleted: int = uint(10)
    anonymous: int = uint(11)
    parent: int = uint(12)
    place: bytes = binary(13)
    filesystem: int = uint(14)
    root_handle: Handle | None = message(15, Handle)
    private: int = uint(20)


def is_in_namespace(mount: Mount) -> bool:
    """Tell whether a mount is cloned from the dumped mount namespace."""
    source = mount.bind_source
    return mount.origin == BIND_SOURCE and source is not None and bool(source.in_namespace)


class File(Message):
    """A file on a detached mount; CRIU knows it by mount id and inode."""

    mnt_id: int = uint(1)
    ino: int = uint(2)
    dev: int = uint(3)
    mode: int = uint(4)
    path: bytes = binary(5)
    rdev: int = uint(6)
    handle: Handle | None = message(7, Handle)
    size: int = uint(8)


class Time(Message):
    """A point in time, as stat(2) has it; before the epoch sec is a two's complement."""

    sec: int = uint(1)
    nsec: int = uint(2)


class Xattr(Message):
    """An extended attribute, xattr(7)."""

    name: bytes = binary(1)
    value: bytes = binary(2)


class Inode(Message):
    """What it takes to recreate a file, besides what its File says."""

    uid: int = uint(1)
    gid: int = uint(2)
    atime: Time | None = message(3, Time)
    mtime: Time | None = message(4, Time)
    size: int = uint(5)
    target: bytes = binary(6)
    xattrs: list[Xattr] = messages(7, Xattr)
    data_at: int = uint(8)
    data_size: int = uint(9)


class Ghost(Message):
    """A deleted file: the name that it was opened by is gone."""

    file: File | None = message(1, File)
    unnamed: int = uint(2)
    inode: Inode | None = message(3, Inode)
    alias: bytes = binary(4)


class Loop(Message):
    """A loop device, loop(4)."""

    file: bytes = binary(1)
    offset: int = uint(2)
    size_limit: int = uint(3)
    flags: int = uint(4)
    block_size: int = uint(5)
    partition: int = uint(6)


class BlockDevice(Message):
    """A block device, and what tells it from another."""

    path: bytes = binary(1)
    size: int = uint(2)
    type: bytes = binary(3)
    uuid: bytes = binary(4)
    uuid_sub: bytes = binary(5)
    checksum: int = uint(6)
    loop: Loop | None = message(7, Loop)


class Layer(Message):
    """A directory that an overlay is made of."""

    option: bytes = binary(1)
    path: bytes = binary(2)
    superblock: Superblock | None = message(3, Superblock)
    ino: int = uint(4)


class Filesystem(Message):
    """A superblock that no attached mount shows."""

    id: int = uint(1)
    superblock: Superblock | None = message(2, Superblock)
    source: bytes = binary(3)
    options: list[bytes] = binaries(4)
    fresh: int = uint(8)
    keeps_inodes: int = uint(9)
    devices: list[BlockDevice] = messages(10, BlockDevice)
    layers: list[Layer] = messages(11, Layer)


class Node(Message):
    """A file of a filesystem that is recreated."""

    filesystem: int = uint(1)
    path: bytes = binary(2)
    mode: int = uint(3)
    rdev: int = uint(4)
    inode: Inode | None = message(5, Inode)
    same_as: bytes = binary(6)


class ExtFile(Message):
    """An open file that CRIU left to the DUMP_EXT_FILE hook."""

    id: int = uint(1)
    flags: int = uint(2)
    pos: int = uint(3)
    mnt_id: int = uint(4)
    ino: int = uint(5)


class BoundSocket(Message):
    """The name of a bound unix socket, and where it leads to."""

    id: int = uint(1)
    mnt_id: int = uint(2)
    name: bytes = binary(3)
    directory: bytes = binary(4)
    deleted: int = uint(5)


class Trailer(Message):
    """The last entry: says that nothing is missing and nothing was changed."""

    entries: int = fixed32(1)
    crc32: int = fixed32(2)


class Entry(Message):
    """One entry of the record file; exactly one field is set."""

    header: Header | None = message(1, Header)
    mount: Mount | None = message(2, Mount)
    file: File | None = message(3, File)
    ext_file: ExtFile | None = message(4, ExtFile)
    ghost: Ghost | None = message(5, Ghost)
    bound_socket: BoundSocket | None = message(6, BoundSocket)
    filesystem: Filesystem | None = message(7, Filesystem)
    node: Node | None = message(8, Node)
    trailer: Trailer | None = message(15, Trailer)

    def content(self) -> Message | None:
        """Return the one field that is set; None if none or several are."""
        found = [value for value in self.__dict__.values() if value is not None]
        return found[0] if len(found) == 1 else None
