"""Filesystems whose inode numbers repeat: here all files have one, and only what the kernel has
besides it tells them apart.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from criu_detached import kernel
from criu_detached.dump.describe import roots
from criu_detached.dump.open_file import OpenFile
from criu_detached.filesystems.superblock import type_of
from criu_detached.filesystems.types import WRAPPING_INODES
from criu_detached.kernel import FileStat

from ..support import KnownFiles
from .test_dump import Ground

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached._kernel import FileFacts

NUMBER = 7


@pytest.fixture(params=["handles", "no handles"])
def one_number(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a tmpfs, which has file handles, and as of a ramfs, which has none."""
    read, entries = FileStat.__init__, vars(roots)["_entries"]

    def read_all_but_number(self: FileStat, found: FileFacts) -> None:
        read(self, found)
        self.ino = NUMBER

    def entries_but_numbers(root: int, directory: bytes) -> list[tuple[bytes, int]]:
        return [(name, NUMBER) for name, _ in entries(root, directory)]

    def refuse(fd: int, flags: int = 0) -> tuple[int, bytes]:
        raise OSError(errno.EOPNOTSUPP, "no handles")

    monkeypatch.setattr(FileStat, "__init__", read_all_but_number)
    monkeypatch.setattr(roots, "_entries", entries_but_numbers)
    if request.param == "no handles":
        monkeypatch.setattr(kernel, "name_to_handle", refuse)


@pytest.fixture
def ground(tmp_path: Path, known_files: KnownFiles) -> Iterator[Ground]:
    """A bind of a tmpfs that is unmounted lazily, and two files with two names each."""
    with ExitStack() as stack:
        made = Ground(tmp_path, known_files, stack)
        assert type_of(made.root).has(WRAPPING_INODES)
        for name in ("one", "other"):
            (made.source / name).write_text(name)
            (made.source / f"{name} too").hardlink_to(made.source / name)
        assert made.take(made.root)
        yield made


def test_hard_links(ground: Ground, one_number: None) -> None:
    """Two names of one file are told from those of another one."""
    for name in ("one", "one too", "one"):
        assert ground.take(ground.open(name))
    for name in ("other", "other too"):
        ground.refused(ground.open(name), "inode 7 of its mount is another file too, one")


@pytest.mark.parametrize("gone_first", [True, False])
def test_same_name(ground: Ground, one_number: None, gone_first: bool) -> None:
    """A file that was deleted, and a new one of that name."""
    gone = ground.open("file")
    (ground.source / "file").unlink()
    (ground.source / "file").write_text("new")
    files = [gone, ground.open("file")]
    if not gone_first:
        files.reverse()
    for fd in (files[0], os.dup(files[0])):
        assert ground.take(fd)
    os.close(fd)
    ground.refused(files[1], "inode 7 of its mount is another file too, file")


def test_two_deleted_files_of_one_name(ground: Ground, one_number: None) -> None:
    first = ground.open("file")
    (ground.source / "file").unlink()
    (ground.source / "file").write_text("new")
    second = ground.open("file")
    (ground.source / "file").unlink()
    assert ground.take(first)
    ground.refused(second, "inode 7 of its mount is another file too, file")
    assert ground.take(first)


def test_other_name_of_a_deleted_file(ground: Ground, one_number: None) -> None:
    """What is named in its place is another name of the very file."""
    (ground.source / "0").write_text("met first")
    fd = ground.open("other")
    (ground.source / "other").unlink()
    names = set(roots.names_of_inode(ground.root, OpenFile.of(fd)))
    assert names == {b"other too"}
