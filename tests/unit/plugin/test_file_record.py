"""plugin/fast/file_record.c is the File of the schema: checked with the protobuf package."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criu_detached.images import recordfile
from criu_detached.images.records import File

from .. import support

PLUGIN = Path(__file__).resolve().parents[3] / "plugin"
TEST = """
#include "fast/file_record.h"

size_t write(const struct file_record *record, uint8_t *entry)
{
	return file_record_write(record, entry);
}

int next(const uint8_t *data, size_t size, size_t *left, struct file_record *record)
{
	struct entries entries = { data, data + size };
	int found = file_record_next(&entries, record);

	*left = entries.end - entries.at;
	return found;
}
"""
ROOM = 128


class Record(ctypes.Structure):
    """struct file_record."""

    _fields_ = (
        ("ino", ctypes.c_uint64),
        ("dev", ctypes.c_uint64),
        ("rdev", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("mnt_id", ctypes.c_uint32),
        ("mode", ctypes.c_uint32),
        ("path_size", ctypes.c_uint32),
        ("path", ctypes.c_void_p),
    )


NUMBERS = ("mnt_id", "ino", "dev", "mode", "rdev", "size")


class Codec:
    """The C file, by values."""

    def __init__(self, library: Path) -> None:
        self._lib = ctypes.CDLL(str(library))

    def write(self, path: bytes, **numbers: int) -> bytes:
        """file_record_write(), and see that it stays within the room that it says."""
        text = ctypes.create_string_buffer(path, len(path))
        record = Record(path_size=len(path), path=ctypes.addressof(text), **numbers)
        entry = ctypes.create_string_buffer(ROOM + len(path))
        size = self._lib.write(ctypes.byref(record), entry)
        assert size <= len(entry)
        return entry.raw[:size]

    def read(self, data: bytes) -> list[tuple[dict[str, int], bytes]] | None:
        """file_record_next() to the end; None when an entry is not sound."""
        found: list[tuple[dict[str, int], bytes]] = []
        while True:
            record, left = Record(), ctypes.c_size_t()
            held = ctypes.create_string_buffer(data, len(data))  # it ends where the data does
            status = self._lib.next(
                held, ctypes.c_size_t(len(data)), ctypes.byref(left), ctypes.byref(record)
            )
            if status != 1:
                return found if status == 0 else None
            numbers = {name: getattr(record, name) for name in NUMBERS}
            found.append((numbers, ctypes.string_at(record.path or 0, record.path_size)))
            data = data[len(data) - left.value :]


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Codec:
    """The C file, compiled."""
    library = tmp_path_factory.mktemp("file_record") / "file_record.so"
    return Codec(support.compile_parts(PLUGIN, library, ("fast/file_record",), TEST))


WIDTHS = {"mnt_id": 32, "ino": 64, "dev": 64, "mode": 32, "rdev": 64, "size": 64}
FILES = st.fixed_dictionaries(
    {name: st.integers(0, (1 << bits) - 1) for name, bits in WIDTHS.items()}
)
PATHS = st.binary(max_size=300)


def framed(*payloads: bytes) -> bytes:
    """Entries, each after its size."""
    return b"".join(len(payload).to_bytes(4, "little") + payload for payload in payloads)


def test_field_numbers(schema: ModuleType) -> None:
    """The enum is the schema's."""
    text = (PLUGIN / "fast" / "file_record.h").read_text()
    found = {name: int(number) for name, number in re.findall(r"\b(\w+) = (\d+)", text)}
    expected = {f"FILE_{f.name.upper()}": f.number for f in schema.File.DESCRIPTOR.fields}
    expected["ENTRY_FILE"] = schema.Entry.DESCRIPTOR.fields_by_name["file"].number
    assert found == expected


def test_widths(schema: ModuleType) -> None:
    """A number that the schema has in 32 bits is one in C, too."""
    for field in schema.File.DESCRIPTOR.fields:
        if field.name in WIDTHS:
            assert (field.type == field.TYPE_UINT32) == (WIDTHS[field.name] == 32), field.name


def test_room() -> None:
    text = (PLUGIN / "fast" / "file_record.h").read_text()
    assert f"#define FILE_RECORD_ROOM {ROOM}" in text


@given(numbers=FILES, path=PATHS)
def test_protobuf_reads_ours(
    schema: ModuleType, codec: Codec, numbers: dict[str, int], path: bytes
) -> None:
    entry = codec.write(path, **numbers)
    assert int.from_bytes(entry[:4], "little") == len(entry) - 4
    theirs = schema.Entry()
    theirs.ParseFromString(entry[4:])
    assert theirs == schema.Entry(file=schema.File(path=path, **numbers))


@given(numbers=FILES, path=PATHS, handle=st.none() | st.binary(max_size=20))
def test_ours_reads_protobuf(
    schema: ModuleType, codec: Codec, numbers: dict[str, int], path: bytes, handle: bytes | None
) -> None:
    theirs = schema.Entry(file=schema.File(path=path, **numbers))
    if handle is not None:
        theirs.file.handle.bytes = handle
    others = schema.Entry(mount=schema.Mount(mnt_id=7, root=path))
    data = framed(others.SerializeToString(), theirs.SerializeToString())
    assert codec.read(data + data) == [(numbers, path)] * 2


@given(numbers=FILES, path=PATHS)
def test_ours_reads_ours(codec: Codec, numbers: dict[str, int], path: bytes) -> None:
    """Both ways, C's and Python's, and what C writes is as long as what Python writes."""
    written = codec.write(path, **numbers)
    other = recordfile.framed(File(path=path, **cast(numbers)))
    assert codec.read(written + other) == [(numbers, path)] * 2
    assert len(written) == len(other)


def cast(numbers: dict[str, int]) -> dict[str, Any]:
    """To the type checker, what any field of a File may be."""
    return dict(numbers)


@pytest.mark.parametrize(
    "payload",
    [
        *["", "1a", "1a 02 08", "1a 01 08 00", "1a 02 08 80", "1a 00 0a 00"],
        "1a 04 08 01 08 01",  # a field twice
        "1a 02 48 01",  # an unknown field
        "1a 02 00 01",
        "1a 02 0a 00",  # another type
        "1a 02 28 01",
        "1a 05 0d 01 00 00 00",
        "1a 06 08 80 80 80 80 10",  # more than 32 bits
        "1a 06 20 80 80 80 80 10",
        "1a 0b 10 ff ff ff ff ff ff ff ff ff 02",  # more than 64
        "1a 0c 10 ff ff ff ff ff ff ff ff ff 81 00",
        "1a 03 2a 02 61",  # a path that is cut off
        "1a 0b 2a ff ff ff ff ff ff ff ff ff 01",
    ],
)
def test_unsound(codec: Codec, payload: str) -> None:
    assert codec.read(framed(bytes.fromhex(payload))) is None


def test_every_cut(codec: Codec) -> None:
    whole = codec.write(b"dir/file", mnt_id=300, ino=1 << 40, mode=0o100644, size=300)
    assert codec.read(b"") == []
    for size in range(1, len(whole)):
        assert codec.read(whole[:size]) is None
