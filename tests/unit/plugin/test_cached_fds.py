"""The fds that a task keeps while it is restored: closed in the end, and nothing else is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from criu_detached.images.recordfile import MAGICS, framed

from .. import support
from ..support import KnownFiles

MNT_ID = 300
MANY = 64  # MANY_FILES of plugin/fast/known_files.c


class Tree:
    """A directory with enough files for fds to be kept."""

    def __init__(self, path: Path, known: KnownFiles, fd: int) -> None:
        self.path = path
        self.known = known
        self.fd = fd
        self.names: list[bytes] = []
        records = []
        for number in range(MANY):
            name = f"{'one' if number < MANY // 2 else 'two'}/{number}"
            (path / name).parent.mkdir(exist_ok=True)
            (path / name).write_bytes(b"x" * number)
            record = support.file_record(path, name, mnt_id=MNT_ID)
            self.names.append(b"ile[%x:%x]" % (MNT_ID, record.ino))
            records.append(framed(record))
        assert known.load(MAGICS + b"".join(records)) == MANY
        known.may_keep(True)

    def open(self, number: int) -> None:
        """Open one of the files and close it again."""
        fd = self.known.open(self.fd, self.names[number], os.O_RDONLY)
        assert fd >= 0
        assert os.fstat(fd).st_size == number
        os.close(fd)


@pytest.fixture
def tree(tmp_path: Path, known_files: KnownFiles, directory: int) -> Tree:
    """A mount of such a directory."""
    known_files.mount_add(MNT_ID, b"key", -1, True)
    return Tree(tmp_path, known_files, directory)


def kept(tree: Tree, *numbers: int) -> dict[int, str]:
    """The fds that are kept when these files were opened."""
    before = support.open_fds()
    for number in numbers:
        tree.open(number)
    return {fd: link for fd, link in support.open_fds().items() if fd not in before}


def test_tree_is_kept(tree: Tree) -> None:
    (fd,) = kept(tree, 0)
    assert fd >= 128
    assert kept(tree, MANY - 1) == {}
    tree.known.drop_cached_fds()
    assert fd not in support.open_fds()


def test_directory_is_kept(tree: Tree) -> None:
    """From the second file in it on, until one is in another."""
    links = kept(tree, 0, 1, 2)
    assert sorted(links.values()) == [str(tree.path), str(tree.path / "one")]
    assert kept(tree, MANY - 2) == {}
    assert len(set(links) & set(support.open_fds())) == 1
    assert list(kept(tree, MANY - 1).values()) == [str(tree.path / "two")]
    tree.known.drop_cached_fds()
    assert not set(links) & set(support.open_fds())


def test_none_is_kept(tree: Tree) -> None:
    tree.known.may_keep(False)
    assert kept(tree, 0, 1, 2) == {}


@pytest.mark.parametrize("numbers", [(0,), (0, 1)], ids=["tree", "directory"])
def test_number_that_is_another_files(tree: Tree, numbers: tuple[int, ...]) -> None:
    """CRIU may take the number of a kept fd for something else, also on that mount."""
    (tree.path / "other").touch()
    fds = kept(tree, *numbers)
    with support.opened(tree.path / "other") as other:
        for fd in fds:
            os.dup2(other, fd)
    tree.known.drop_cached_fds()
    for fd in fds:
        assert os.readlink(f"/proc/self/fd/{fd}") == str(tree.path / "other")
        os.close(fd)


def test_number_that_is_closed(tree: Tree) -> None:
    for fd in kept(tree, 0, 1):
        os.close(fd)
    tree.known.drop_cached_fds()
