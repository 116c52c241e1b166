"""The C part of a restore refuses what Python refuses, and opens nothing but what is recorded."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criu_detached.images.record_writer import RecordWriter
from criu_detached.images.recordfile import NAME
from criu_detached.images.records import FORMAT, Entry, File, Handle, Header, Mount
from criu_detached.images.wire import WireError, decode, encode

from .. import support
from ..support import KnownFiles

MNT_ID = 300
REGULAR = stat.S_IFREG | 0o644
MAGICS = b"\x19\x43\x56\x54" + b"1MTD"


def framed(*payloads: bytes) -> bytes:
    """A record file of some entries; the header and the trailer are Python's business."""
    return MAGICS + b"".join(len(p).to_bytes(4, "little") + p for p in payloads)


def entry(file: File) -> bytes:
    """The entry of a file."""
    return encode(Entry(file=file))


@pytest.fixture
def known(known_files: KnownFiles) -> KnownFiles:
    """With one mount, of which inodes are compared."""
    known_files.mount_add(MNT_ID, b"key", -1, True)
    return known_files


def test_files_are_counted(known: KnownFiles, tmp_path: Path, directory: int) -> None:
    writer = RecordWriter(directory, Header(format=FORMAT))
    writer.mount(Mount(mnt_id=MNT_ID))
    for inode in range(1, 100):
        writer.file(File(mnt_id=MNT_ID, ino=inode, mode=REGULAR, path=b"f%d" % inode))
    assert known.load((tmp_path / NAME).read_bytes()) == 99


def test_no_files(known: KnownFiles) -> None:
    assert known.load(framed()) == 0
    assert known.load(b"") == -1


@pytest.mark.parametrize("path", [b".", b"a", b"a/b", b"...", b"a..b", b".a", b"a/.b/..c"])
def test_good_paths(known: KnownFiles, path: bytes) -> None:
    assert known.load(framed(entry(File(mnt_id=MNT_ID, ino=1, path=path)))) == 1


@pytest.mark.parametrize(
    "path",
    [
        *[b"", b"..", b"/", b"/a", b"a/", b"a//b", b"a/./b", b"./a", b"a/.", b"a/..", b"a/../b"],
        b"a\0",
        b"x" * 4096,
    ],
)
def test_bad_paths(known: KnownFiles, path: bytes) -> None:
    assert known.load(framed(entry(File(mnt_id=MNT_ID, ino=1, path=path)))) == -1


def test_numbers_that_are_too_large(known: KnownFiles) -> None:
    """They would be cut to another number."""
    for file in (
        File(mnt_id=MNT_ID | 1 << 32, ino=1, path=b"a"),
        File(mnt_id=MNT_ID, ino=1, path=b"a", mode=1 << 32),
    ):
        assert known.load(framed(entry(file))) == -1


def test_unknown_mount(known: KnownFiles) -> None:
    assert known.load(framed(entry(File(mnt_id=MNT_ID + 1, ino=1, path=b"a")))) == -1


def test_name_twice(known: KnownFiles) -> None:
    one = File(mnt_id=MNT_ID, ino=1, path=b"a")
    other = File(mnt_id=MNT_ID, ino=1, path=b"b")
    third = File(mnt_id=MNT_ID, ino=2, path=b"b")
    assert known.load(framed(entry(one), entry(third))) == 2
    assert known.load(framed(entry(one), entry(third), entry(other))) == -1


def sound(payload: bytes) -> bool:
    """What Python says of an entry that holds a file."""
    try:
        found = decode(Entry, payload)
    except WireError:
        return False
    file = found.file
    return (
        isinstance(found.content(), File)
        and file is not None
        and file.mnt_id == MNT_ID
        and file.mode < 1 << 32
        and len(file.path) < 4096
        and b"\0" not in file.path
        and (file.path == b"." or not {b"", b".", b".."} & set(file.path.split(b"/")))
    )


@given(data=st.data())
def test_changed_entries(known: KnownFiles, data: st.DataObject) -> None:
    """What is changed in an entry is seen by C as by Python, and nothing is read past its end."""
    file = File(mnt_id=MNT_ID, ino=1 << 40, dev=5, mode=REGULAR, path=b"a/bc", rdev=9)
    payload = bytearray(entry(file))
    kind = data.draw(st.sampled_from(["set", "cut", "insert", "delete"]))
    at = data.draw(st.integers(0, len(payload) - 1))
    if kind == "set":
        payload[at] = data.draw(st.integers(0, 255))
    elif kind == "cut":
        del payload[at:]
    elif kind == "insert":
        payload[at:at] = data.draw(st.binary(min_size=1, max_size=4))
    else:
        del payload[at]
    count = known.load(framed(bytes(payload)))
    if payload[:1] == b"\x1a":
        assert (count == 1) == sound(bytes(payload)), payload.hex(" ")
    else:
        assert count <= 0


@given(data=st.binary(max_size=200))
def test_any_bytes(known: KnownFiles, data: bytes) -> None:
    known.load(data)
    known.load(MAGICS + data)
    assert known.load(framed(b"\x1a" + data)) in (-1, 1)


def test_cut_file(known: KnownFiles) -> None:
    whole = framed(entry(File(mnt_id=MNT_ID, ino=1, path=b"a")))
    for size in range(len(MAGICS) + 1, len(whole)):
        assert known.load(whole[:size]) == -1


class Tree:
    """A directory with files in it, and records of them."""

    def __init__(self, path: Path, known: KnownFiles, fd: int) -> None:
        self.path = path
        self.known = known
        self.fd = fd

    def record(self, name: str, **changes: int) -> bytes:
        """Record a file, with something changed; returns the name that CRIU opens it by."""
        handle = Handle(type=1, bytes=b"handle")
        file = support.file_record(self.path, name, mnt_id=MNT_ID, handle=handle, **changes)
        assert self.known.load(framed(entry(file))) == 1
        return b"ile[%x:%x]" % (file.mnt_id, file.ino)

    def open(self, name: bytes, flags: int = os.O_RDONLY) -> int:
        """Open as CRIU would, and see that nothing else is left open."""
        before = set(support.open_fds())
        fd = self.known.open(self.fd, name, flags)
        assert set(support.open_fds()) - before == ({fd} if fd >= 0 else set())
        return fd


@pytest.fixture
def tree(tmp_path: Path, known: KnownFiles, directory: int) -> Tree:
    """Files of several kinds, and a way around to one of them."""
    support.make_files(tmp_path)
    (tmp_path / "through").symlink_to("dir")
    return Tree(tmp_path, known, directory)


@pytest.mark.parametrize(("name", "flags"), support.OPENED)
def test_opens(tree: Tree, name: str, flags: int) -> None:
    fd = tree.open(tree.record(name), flags)
    assert os.path.samestat(os.fstat(fd), (tree.path / name).lstat())
    os.close(fd)


@pytest.mark.parametrize(
    "name", [b"ile[12c:0]", b"ile[12d:1]", b"ile[]", b"ile[", b"ile[:]", b"ile[12c:1", b"ile[zz:1]"]
)
def test_unknown_names(tree: Tree, name: bytes) -> None:
    tree.record("dir/file")
    assert tree.open(name) == -1


def test_mount_id_that_is_too_large(tree: Tree) -> None:
    """It would be cut to that of another mount."""
    mnt_id, ino = tree.record("dir/file").removeprefix(b"ile[").split(b":")
    assert tree.open(b"ile[1%08x:%s" % (int(mnt_id, 16), ino)) == -1


def test_other_type(tree: Tree) -> None:
    assert tree.open(tree.record("fifo", mode=REGULAR), os.O_RDWR) == -1


def test_other_device(tree: Tree) -> None:
    assert tree.open(tree.record("dir/file", rdev=5)) == -1


def test_other_inode(tree: Tree) -> None:
    found = (tree.path / "dir" / "file").stat()
    assert tree.open(tree.record("dir/file", ino=found.st_ino + 1)) == -1


def test_inodes_of_a_filesystem_that_was_made_anew(
    known_files: KnownFiles, tmp_path: Path, directory: int
) -> None:
    known_files.mount_add(MNT_ID, b"key", -1, False)
    (tmp_path / "file").touch()
    tree = Tree(tmp_path, known_files, directory)
    fd = tree.open(tree.record("file", ino=5))
    assert fd >= 0
    os.close(fd)


def test_file_is_gone(tree: Tree) -> None:
    name = tree.record("dir/file")
    (tree.path / "dir" / "file").unlink()
    assert tree.open(name) == -1


def test_symlink_in_the_way(tree: Tree) -> None:
    """A directory was replaced by a link to where it is now."""
    name = tree.record("dir/file")
    (tree.path / "through").unlink()
    (tree.path / "dir").rename(tree.path / "moved")
    (tree.path / "dir").symlink_to("moved")
    assert tree.open(name) == -1


def test_other_mount_in_the_way(tree: Tree, tmp_path: Path) -> None:
    name = tree.record("dir/file")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with support.mounted(tmp_path / "dir", "--bind", str(tmp_path / "dir")):
        assert tree.open(name) == -1


def test_mount_of_one_file_is_left_to_python(tree: Tree) -> None:
    assert tree.known.load(framed(entry(File(mnt_id=MNT_ID, ino=1, mode=REGULAR, path=b".")))) == 1
    assert tree.open(b"ile[12c:1]") == -1
