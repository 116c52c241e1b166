"""The record file is read as it was written, or refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from criu_detached.images.record_reader import read_records
from criu_detached.images.record_writer import RecordWriter
from criu_detached.images.recordfile import MAX_FILE, NAME
from criu_detached.images.records import (
    BoundSocket,
    File,
    Ghost,
    Mount,
)

from .samples import EXT_FILE, FILE, GHOST, HEADER, MOUNT, SOCKET, refused, write_all


def test_what_is_written_is_read(directory: int) -> None:
    write_all(directory)
    records = read_records(directory)
    assert records.header == HEADER
    assert records.mounts == {300: MOUNT}
    assert records.files == {(300, 5): FILE}
    assert records.ghosts == {(300, 6): GHOST}
    assert records.ext_files == {7: EXT_FILE}
    assert records.bound_sockets == {1: SOCKET}


def test_oversized_file(directory: int, tmp_path: Path, written: bytes) -> None:
    os.truncate(tmp_path / NAME, MAX_FILE + 1)
    refused(directory, "damaged", str(MAX_FILE))


def test_missing(directory: int) -> None:
    refused(directory, "missing")


def test_fifo(directory: int, tmp_path: Path) -> None:
    """It is not waited for."""
    os.mkfifo(tmp_path / NAME)
    refused(directory)


def test_directory(directory: int, tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    refused(directory)


def test_symlink(directory: int, tmp_path: Path, written: bytes) -> None:
    (tmp_path / NAME).rename(tmp_path / "other")
    (tmp_path / NAME).symlink_to("other")
    refused(directory)


def test_mount_twice(directory: int) -> None:
    writer = RecordWriter(directory, HEADER)
    writer.mount(MOUNT)
    writer.mount(MOUNT)
    refused(directory, "mount 300 is there twice")


def test_file_record_twice(directory: int) -> None:
    writer = RecordWriter(directory, HEADER)
    writer.mount(MOUNT)
    writer.file(FILE)
    writer.file(FILE)
    refused(directory, "inode 5", "twice")


def test_file_before_its_mount(directory: int) -> None:
    RecordWriter(directory, HEADER).file(FILE)
    refused(directory, "mount", "not there")


def test_ext_file_twice(directory: int) -> None:
    writer = RecordWriter(directory, HEADER)
    writer.mount(MOUNT)
    writer.file(FILE)
    writer.ext_file(EXT_FILE)
    writer.ext_file(EXT_FILE)
    refused(directory, "0x7", "twice")


def test_ghost_twice(directory: int) -> None:
    writer = RecordWriter(directory, HEADER)
    writer.mount(MOUNT)
    writer.ghost(GHOST)
    writer.ghost(GHOST)
    refused(directory, "inode 6", "twice")


def test_ghost_on_an_unknown_mount(directory: int) -> None:
    RecordWriter(directory, HEADER).ghost(GHOST)
    refused(directory, "deleted file", "not there")


def test_ghost_without_a_file(directory: int) -> None:
    writer = RecordWriter(directory, HEADER)
    writer.mount(MOUNT)
    writer.ghost(Ghost(alias=b"alias"))
    refused(directory, "deleted file")


@pytest.mark.parametrize(
    "record",
    [
        BoundSocket(mnt_id=300, name=b"socket", directory=b"."),
        BoundSocket(id=2, mnt_id=301, name=b"socket", directory=b"."),
        BoundSocket(id=1 << 31, mnt_id=300, name=b"socket", directory=b"."),
        SOCKET,
    ],
    ids=["no id", "no mount", "large id", "twice"],
)
def test_bad_socket(directory: int, record: BoundSocket) -> None:
    write_all(directory)
    os.unlink(NAME, dir_fd=directory)
    writer = RecordWriter(directory, HEADER)
    for one in (MOUNT, SOCKET):
        (writer.mount if isinstance(one, Mount) else writer.bound_socket)(one)  # type: ignore[arg-type]
    writer.bound_socket(record)
    refused(directory, "damaged")


def test_longest_path(directory: int) -> None:
    writer = RecordWriter(directory, HEADER)
    writer.mount(MOUNT)
    writer.file(File(mnt_id=300, ino=1, path=b"p" * 4096))
    assert len(read_records(directory).files[300, 1].path) == 4096


def test_reading_leaves_no_fd_open(directory: int, tmp_path: Path, written: bytes) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    read_records(directory)
    (tmp_path / NAME).write_bytes(written[:-1])
    refused(directory)
    assert sorted(os.listdir("/proc/self/fd")) == before
