"""The C part of a dump takes plain files alone, and writes for them what Python would write."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from criu_detached import kernel
from criu_detached.dump import files
from criu_detached.dump.open_file import OpenFile
from criu_detached.images.records import Entry
from criu_detached.images.wire import decode, encode

from .. import support

PLUGIN = Path(__file__).resolve().parents[3] / "plugin"
PARTS = ("fast/plain_files", "fast/recorded_files", "fast/file_record")
MOUNT = 300

TEST = """
#include "fast/plain_files.h"
#include "fast/recorded_files.h"

int take(int fd, const char *link, uint32_t mnt_id)
{
	struct file_facts facts;

	if (facts_of(fd, &facts))
		return -1;
	facts.mnt_id = mnt_id;
	return plain_file_take(link, &facts);
}

const char *path_of(uint32_t mnt_id, uint64_t ino)
{
	const struct recorded_file *found = recorded_file_find(mnt_id, ino);

	return found ? found->path : NULL;
}
"""


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[ctypes.CDLL]:
    """The fast path of a dump as a library of its own."""
    lib = ctypes.CDLL(str(support.compile_parts(PLUGIN, tmp_path / "plain_files.so", PARTS, TEST)))
    lib.path_of.argtypes = (ctypes.c_uint32, ctypes.c_uint64)
    lib.path_of.restype = ctypes.c_char_p
    lib.plain_files_pending.restype = ctypes.c_void_p
    yield lib
    lib.plain_files_reset()
    lib.recorded_files_reset()


def pending(lib: ctypes.CDLL) -> bytes:
    """The records that were made, as they go into the record file."""
    size, entries = ctypes.c_size_t(), ctypes.c_uint()
    at = lib.plain_files_pending(ctypes.byref(size), ctypes.byref(entries))
    return ctypes.string_at(at, size.value) if entries.value else b""


@pytest.fixture
def directory(plain: ctypes.CDLL, tmp_path: Path) -> Iterator[Path]:
    """The root of a bind source, whose mount shows the files."""
    source = tmp_path / "source"
    (source / "dir").mkdir(parents=True)
    root = os.open(source, os.O_PATH)
    assert plain.plain_mount_add(MOUNT, root, kernel.fstat(root).mnt_id, 0) == 0
    yield source
    os.close(root)


def take(lib: ctypes.CDLL, path: Path, link: bytes, mount: int = MOUNT) -> bool:
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    try:
        return bool(lib.take(fd, link, ctypes.c_uint32(mount)))
    finally:
        os.close(fd)


def test_record(plain: ctypes.CDLL, directory: Path) -> None:
    """Two fds of a file have one record, and it is the one that Python makes."""
    path = directory / "dir" / "file"
    path.write_bytes(b"x" * 300)
    assert take(plain, path, b"/dir/file") and take(plain, path, b"/dir/file")
    with support.opened(path) as fd:
        record = files._file_record(OpenFile.of(fd), b"dir/file")
    record.mnt_id = MOUNT
    framed = pending(plain)
    assert int.from_bytes(framed[:4], "little") == len(framed) - 4
    assert encode(decode(Entry, framed[4:])) == encode(Entry(file=record))
    plain.plain_files_written()
    assert pending(plain) == b""
    assert plain.path_of(MOUNT, record.ino) == b"dir/file"


def test_left_to_python(plain: ctypes.CDLL, directory: Path) -> None:
    path, other = directory / "file", directory / "other"
    path.touch()
    other.touch()
    assert not take(plain, path, b"/file", MOUNT + 1)
    assert not take(plain, path, b"/other")  # another file has the name
    assert not take(plain, path, b"/")
    assert not take(plain, directory / "dir", b"/dir")
    (directory / "link").symlink_to("file")
    assert not take(plain, directory / "link", b"/link")
    os.link(other, directory / "second")
    assert not take(plain, other, b"/other")
    assert take(plain, path, b"/file")
    assert not take(plain, path, b"/renamed")
    assert plain.path_of(MOUNT, other.stat().st_ino) is None
