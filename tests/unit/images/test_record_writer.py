"""The record file is whole at every moment, or the dump fails in time."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from criu_detached.errors import DetachedError
from criu_detached.images.record_reader import read_records
from criu_detached.images.record_writer import RecordWriter
from criu_detached.images.recordfile import MAX_ENTRY, NAME
from criu_detached.images.records import (
    FORMAT,
    File,
    Header,
    Mount,
)

from .samples import HEADER, MOUNT


def test_whole_after_every_record(directory: int) -> None:
    writer = RecordWriter(directory, HEADER)
    assert read_records(directory).mounts == {}
    writer.mount(MOUNT)
    assert read_records(directory).mounts == {300: MOUNT}
    for inode in range(1, 200):
        writer.file(File(mnt_id=300, ino=inode, path=b"f%d" % inode))
        assert len(read_records(directory).files) == inode


def test_mode_and_owner(directory: int, tmp_path: Path, written: bytes) -> None:
    found = (tmp_path / NAME).stat()
    assert stat.S_IMODE(found.st_mode) == 0o600
    assert found.st_uid == os.geteuid()


def test_existing_file_is_left(directory: int, tmp_path: Path) -> None:
    (tmp_path / NAME).write_text("somebody's")
    with pytest.raises(DetachedError, match=f"can't create {NAME}"):
        RecordWriter(directory, HEADER)
    assert (tmp_path / NAME).read_text() == "somebody's"


def test_existing_link_is_not_followed(directory: int, tmp_path: Path) -> None:
    (tmp_path / NAME).symlink_to("elsewhere")
    with pytest.raises(DetachedError, match=f"can't create {NAME}"):
        RecordWriter(directory, HEADER)
    assert not (tmp_path / "elsewhere").exists()


def test_record_that_is_too_large(directory: int) -> None:
    """It is refused when it is written, and what was there before is whole."""
    writer = RecordWriter(directory, HEADER)
    with pytest.raises(DetachedError, match="limits"):
        writer.mount(Mount(mnt_id=1, root=b"x" * MAX_ENTRY))
    writer.mount(MOUNT)
    assert read_records(directory).mounts == {300: MOUNT}


def write_files(writer: RecordWriter, count: int) -> None:
    """Many files."""
    for inode in range(1, count + 1):
        writer.file(File(mnt_id=300, ino=inode, path=b"file"))


def test_full_filesystem(tmpfs: Path) -> None:
    """The dump fails while it can: in the very write that does not fit."""
    fd = os.open(tmpfs, os.O_RDONLY)
    try:
        writer = RecordWriter(fd, HEADER)
        writer.mount(MOUNT)
        with pytest.raises(DetachedError, match=f"can't write {NAME}"):
            write_files(writer, 1000)
    finally:
        os.close(fd)


TRAILER_SIZE = 16  # docs/image-format.md: a trailer with its size in front


def test_framed(tmp_path: Path) -> None:
    """Records that are framed already leave the same file, once it is flushed, as any others."""
    contents: list[bytes] = []
    for framed in (False, True):
        directory = tmp_path / str(framed)
        directory.mkdir()
        fd = os.open(directory, os.O_RDONLY)
        writer = RecordWriter(fd, Header(format=FORMAT))
        writer.mount(Mount(mnt_id=1))
        before = (directory / NAME).stat().st_size - TRAILER_SIZE
        if framed:
            writer.framed(contents[0][before:-TRAILER_SIZE], 4999)
            assert read_records(fd).files == {}
        for ino in range(1, 5000) if not framed else ():
            writer.file(File(mnt_id=1, ino=ino, path=b"file%d" % ino))
            if ino in (1, 60):
                assert len(read_records(fd).files) == ino
        writer.flush()
        assert len(read_records(fd).files) == 4999
        contents.append((directory / NAME).read_bytes())
        os.close(fd)
    assert contents[0] == contents[1]
