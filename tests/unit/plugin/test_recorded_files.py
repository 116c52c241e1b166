"""Which files have a record in a dump: each is found by its mount and inode, and no other."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

import pytest

from .. import support

PLUGIN = Path(__file__).resolve().parents[3] / "plugin"
TEST = """
#include "fast/recorded_files.h"

const char *path_of(uint32_t mnt_id, uint64_t ino)
{
	const struct recorded_file *found = recorded_file_find(mnt_id, ino);

	return found ? found->path : NULL;
}

uint64_t dev_of(uint32_t mnt_id, uint64_t ino)
{
	return recorded_file_find(mnt_id, ino)->dev;
}
"""
NAME = (ctypes.c_uint32, ctypes.c_uint64)


@pytest.fixture
def recorded(tmp_path: Path) -> Iterator[ctypes.CDLL]:
    """plugin/fast/recorded_files.c as a library of its own."""
    library = tmp_path / "recorded_files.so"
    lib = ctypes.CDLL(str(support.compile_parts(PLUGIN, library, ("fast/recorded_files",), TEST)))
    lib.recorded_file_add.argtypes = (*NAME, ctypes.c_uint64, ctypes.c_char_p)
    lib.path_of.argtypes = lib.dev_of.argtypes = NAME
    lib.path_of.restype = ctypes.c_char_p
    lib.dev_of.restype = ctypes.c_uint64
    yield lib
    lib.recorded_files_reset()


def test_none(recorded: ctypes.CDLL) -> None:
    assert recorded.path_of(300, 5) is None


def test_one(recorded: ctypes.CDLL) -> None:
    assert recorded.recorded_file_add(300, 5, 1 << 63, b"dir/file") == 0
    assert recorded.path_of(300, 5) == b"dir/file"
    assert recorded.dev_of(300, 5) == 1 << 63
    assert recorded.path_of(301, 5) is None
    assert recorded.path_of(300, 6) is None
    recorded.recorded_files_reset()
    assert recorded.path_of(300, 5) is None


def test_inodes_that_are_alike(recorded: ctypes.CDLL) -> None:
    """Filesystems may number inodes by their place, so that the lowest bits are all the same."""
    inodes = [number << 20 for number in range(1, 30_000)]
    for ino in inodes:
        assert recorded.recorded_file_add(300, ino, 7, b"%d" % ino) == 0
    assert recorded.recorded_file_add(300, inodes[0], 7, b"again") == 0
    assert recorded.path_of(300, inodes[0]) == b"again"
    assert all(recorded.path_of(300, ino) == b"%d" % ino for ino in inodes[1:])
    assert recorded.path_of(301, inodes[1]) is None
