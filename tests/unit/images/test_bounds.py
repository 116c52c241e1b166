"""Numbers in records that are too large are refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from criu_detached.images.record_reader import read_records
from criu_detached.images.record_writer import RecordWriter
from criu_detached.images.records import (
    File,
    Filesystem,
    Ghost,
    Inode,
    Mount,
    Node,
)
from criu_detached.images.wire import decode, encode

from .samples import GHOST, HEADER, MOUNT, refused


def changed(change: Callable[[File, Inode], None]) -> Ghost:
    """A ghost with something changed."""
    ghost: Ghost = decode(Ghost, encode(GHOST))
    assert ghost.file is not None and ghost.inode is not None
    change(ghost.file, ghost.inode)
    return ghost


def setter(part: str, name: str, value: int) -> Callable[[File, Inode], None]:
    """Change one number."""

    def change(file: File, inode: Inode) -> None:
        parts = {"file": file, "inode": inode, "handle": file.handle, "mtime": inode.mtime}
        setattr(parts[part], name, value)

    return change


BOUNDS = [
    ("file", "mode", 1 << 32),
    ("handle", "type", 1 << 31),
    ("inode", "size", 1 << 63),
    ("inode", "data_at", 1 << 62),
    ("inode", "data_size", 1 << 62),
    ("inode", "uid", 1 << 32),
    ("inode", "gid", 1 << 32),
    ("mtime", "nsec", 1_000_000_000),
]


@pytest.mark.parametrize(("part", "name", "bound"), BOUNDS)
def test_number_of_a_ghost(directory: int, part: str, name: str, bound: int) -> None:
    """What the kernel keeps in fewer bits than a record could."""
    writer = RecordWriter(directory, HEADER)
    writer.mount(MOUNT)
    writer.ghost(changed(setter(part, name, bound - 1)))
    assert len(read_records(directory).ghosts) == 1
    ghost = changed(setter(part, name, bound))
    assert ghost.file is not None
    ghost.file.ino += 1
    writer.ghost(ghost)
    refused(directory, "larger than")


def test_modes(directory: int) -> None:
    """A type of file has 32 bits where the kernel and Python take it."""
    writer = RecordWriter(directory, HEADER)
    writer.mount(MOUNT)
    writer.filesystem(Filesystem(id=1))
    writer.node(Node(filesystem=1, path=b"a", mode=(1 << 32) - 1))
    writer.flush()
    assert len(read_records(directory).nodes[1]) == 1
    writer.node(Node(filesystem=1, path=b"b", mode=1 << 32))
    writer.flush()
    refused(directory, "larger than 32 bits")


def test_type_of_a_root(directory: int) -> None:
    changed_mount: Mount = decode(Mount, encode(MOUNT))
    changed_mount.root_type = 1 << 32
    RecordWriter(directory, HEADER).mount(changed_mount)
    refused(directory, "larger than 32 bits")
