"""Filesystems that this process makes where nobody else sees them."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from criu_detached.errors import DetachedError
from criu_detached.images.record_reader import Records, read_records
from criu_detached.images.record_writer import RecordWriter
from criu_detached.images.records import (
    FORMAT,
    RECREATED,
    BindSource,
    BoundSocket,
    Filesystem,
    Header,
    Inode,
    Mount,
    Node,
    Superblock,
)
from criu_detached.kernel import namespaces
from criu_detached.restore.context import ProcessFds
from criu_detached.restore.filesystems.make import NewFilesystems

from ... import support
from ...support import memory_record

pytestmark = pytest.mark.usefixtures("nothing_stays")


def records(directory: int, *more: Mount | Node | BoundSocket, options: str = "") -> Records:
    """Records of one filesystem, and others."""
    writer = RecordWriter(directory, Header(format=FORMAT))
    writer.filesystem(memory_record(7, options=options))
    for record in more:
        if isinstance(record, Mount):
            writer.mount(record)
        elif isinstance(record, BoundSocket):
            writer.bound_socket(record)
        else:
            writer.node(record)
    writer.flush()
    return read_records(directory)


def mount(number: int, path: bytes, **fields: Any) -> Mount:
    """A mount of the filesystem."""
    return Mount(
        mnt_id=number,
        origin=RECREATED,
        filesystem=7,
        root_type=fields.pop("root_type", stat.S_IFDIR),
        superblock=Superblock(fs_type=b"tmpfs"),
        bind_source=BindSource(path=path),
        **fields,
    )


def test_make_filesystems(directory: int) -> None:
    """With the roots of its mounts, unless they are files or come with the deleted ones.

    And with the directories that sockets are to be bound in.
    """
    node = Node(filesystem=7, path=b"a/file", mode=stat.S_IFREG | 0o600, inode=Inode(size=5))
    found = records(
        directory,
        mount(1, b"b/c"),
        mount(2, b"file", root_type=stat.S_IFREG),
        mount(3, b"gone", root_deleted=1),
        node,
        BoundSocket(id=1, mnt_id=1, name=b"of/socket", directory=b"d"),
        BoundSocket(id=2, mnt_id=3, name=b"/absolute/socket", directory=b"nowhere"),
        options="size=1m",
    )
    with (
        support.opened(Path("/proc"), os.O_PATH) as proc,
        NewFilesystems(found, True, ProcessFds(proc)) as made,
        namespaces.PrivateNamespace(),
    ):
        made.make()
        with made.source_of(found.mounts[1]).open_top() as top:
            assert sorted(os.listdir(f"/proc/self/fd/{top}")) == ["a", "b"]
            assert os.listdir(f"/proc/self/fd/{top}/b/c/d") == ["of"]
            assert os.fstatvfs(top).f_blocks * os.fstatvfs(top).f_frsize > 1 << 20
            made.set_limits()
            assert os.fstatvfs(top).f_blocks * os.fstatvfs(top).f_frsize == 1 << 20


@pytest.mark.parametrize(
    ("fs_type", "fresh"),
    [(b"tmpfs", 1), (b"ext4", 1), (b"future", 1), (b"proc", 0), (b"sysfs", 0), (b"overlay", 0)],
)
def test_record_that_no_dump_writes(directory: int, fs_type: bytes, fresh: int) -> None:
    """How a filesystem comes back follows from its type: a record can't say otherwise."""
    writer = RecordWriter(directory, Header(format=FORMAT))
    writer.filesystem(Filesystem(id=7, superblock=Superblock(fs_type=fs_type), fresh=fresh))
    writer.flush()
    with pytest.raises(DetachedError, match="7 does not come back as others of its type"):
        NewFilesystems(read_records(directory), True, ProcessFds(-1)).make()
