"""A record of each kind, and files of records that tests of the record file begin with."""

from __future__ import annotations

import os
import stat

import pytest

from criu_detached.errors import DetachedError
from criu_detached.images.record_reader import Records, read_records
from criu_detached.images.record_writer import RecordWriter
from criu_detached.images.recordfile import NAME, damaged
from criu_detached.images.records import (
    BIND_SOURCE,
    FORMAT,
    BindSource,
    BoundSocket,
    ExtFile,
    File,
    Ghost,
    Handle,
    Header,
    Inode,
    Mount,
    Superblock,
    Time,
    Xattr,
)
from criu_detached.images.wire import WireError

HEADER = Header(format=FORMAT, boot_id=b"boot", machine=b"7.0")
MOUNT = Mount(
    mnt_id=300,
    origin=BIND_SOURCE,
    root=b"/tree",
    root_type=stat.S_IFDIR,
    superblock=Superblock(fs_type=b"tmpfs", magic=0x01021994, dev=40),
    bind_source=BindSource(mnt_id=30, mountpoint=b"/mnt", path=b"tree"),
)
FILE = File(mnt_id=300, ino=5, dev=40, mode=stat.S_IFREG | 0o644, path=b"file")
GHOST = Ghost(
    file=File(
        mnt_id=300,
        ino=6,
        dev=40,
        mode=stat.S_IFREG | 0o600,
        path=b"deleted",
        handle=Handle(type=1, bytes=b"handle"),
    ),
    inode=Inode(
        uid=1000,
        gid=100,
        atime=Time(sec=1, nsec=2),
        mtime=Time(sec=(1 << 64) - 1, nsec=999_999_999),
        size=5,
        xattrs=[Xattr(name=b"user.a", value=b"1"), Xattr(name=b"user.b")],
        data_at=8,
        data_size=21,
    ),
)
SOCKET = BoundSocket(id=1, mnt_id=300, name=b"/mnt/tree/socket", directory=b".")
EXT_FILE = ExtFile(id=7, flags=os.O_RDWR, pos=3, mnt_id=300, ino=5)


def write_all(directory: int) -> None:
    """A file with one record of each kind."""
    writer = RecordWriter(directory, HEADER)
    writer.mount(MOUNT)
    writer.file(FILE)
    writer.ghost(GHOST)
    writer.ext_file(EXT_FILE)
    writer.bound_socket(SOCKET)


def read_all(directory: int) -> Records:
    """Read the files too, which otherwise is done when one is asked for."""
    records = read_records(directory)
    try:
        assert records.files is not None
    except WireError as error:
        raise damaged(error) from error
    return records


def refused(directory: int, *parts: str) -> None:
    """Reading fails with one line that names the file and says what is wrong."""
    with pytest.raises(DetachedError) as error:
        read_all(directory)
    text = str(error.value)
    assert len(text.splitlines()) == 1
    for part in (NAME, *parts):
        assert part in text
