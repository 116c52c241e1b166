"""The layout of the record file: as documented, and refused when a bit of it is changed."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from criu_detached.images.record_writer import RecordWriter
from criu_detached.images.recordfile import MAX_ENTRY, NAME
from criu_detached.images.records import (
    FORMAT,
    Header,
)

from .samples import refused


def test_framing(written: bytes) -> None:
    """As docs/image-format.md has it; older files must stay readable."""
    assert written[:8] == b"\x19\x43\x56\x54" + b"1MTD"
    at = 8
    starts = []
    while at < len(written):
        (size,) = struct.unpack_from("<I", written, at)
        starts.append(written[at + 4])
        at += 4 + size
    assert at == len(written)
    # Field numbers of Entry, as length-delimited tags.
    assert [tag >> 3 for tag in starts] == [1, 2, 3, 5, 4, 6, 15]
    assert {tag & 7 for tag in starts} == {2}


def test_every_cut(directory: int, tmp_path: Path, written: bytes) -> None:
    for size in range(len(written)):
        (tmp_path / NAME).write_bytes(written[:size])
        refused(directory)


def test_every_flipped_bit(directory: int, tmp_path: Path, written: bytes) -> None:
    for bit in range(len(written) * 8):
        changed = bytearray(written)
        changed[bit // 8] ^= 1 << bit % 8
        (tmp_path / NAME).write_bytes(changed)
        refused(directory)


def test_every_lost_byte(directory: int, tmp_path: Path, written: bytes) -> None:
    for at in range(len(written)):
        (tmp_path / NAME).write_bytes(written[:at] + written[at + 1 :])
        refused(directory)


@pytest.mark.parametrize("more", [b"\0", b"\0\0\0\0", b"\x01\0\0\0x", b"\xff" * 8])
def test_more_at_the_end(directory: int, tmp_path: Path, written: bytes, more: bytes) -> None:
    (tmp_path / NAME).write_bytes(written + more)
    refused(directory, "damaged")


def test_file_twice(directory: int, tmp_path: Path, written: bytes) -> None:
    (tmp_path / NAME).write_bytes(written + written[8:])
    refused(directory, "damaged")


def test_zeroes(directory: int, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(bytes(4096))
    refused(directory, "magic")


def test_zeroes_after_the_magic(directory: int, tmp_path: Path, written: bytes) -> None:
    (tmp_path / NAME).write_bytes(written[:8] + bytes(4096))
    refused(directory, "damaged")


def test_oversized_entry(directory: int, tmp_path: Path, written: bytes) -> None:
    for size in (MAX_ENTRY + 1, 1 << 31, (1 << 32) - 1):
        (tmp_path / NAME).write_bytes(written[:8] + struct.pack("<I", size) + written[12:])
        refused(directory, "damaged", str(size))


@pytest.mark.parametrize("format_", [0, FORMAT + 1, (1 << 64) - 1])
def test_other_version(directory: int, format_: int) -> None:
    RecordWriter(directory, Header(format=format_))
    refused(directory, f"format {format_}", f"format {FORMAT}", "version of criu-detached")
