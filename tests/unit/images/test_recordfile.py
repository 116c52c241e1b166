"""The record file: whole at every moment, and refused when it is not what was written."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from criu_detached.errors import DetachedError
from criu_detached.images.recordfile import (
    MAX_ENTRY,
    MAX_FILE,
    NAME,
    Records,
    RecordWriter,
    damaged,
    read_records,
)
from criu_detached.images.records import (
    BIND_SOURCE,
    FORMAT,
    BindSource,
    BoundSocket,
    ExtFile,
    File,
    Filesystem,
    Ghost,
    Handle,
    Header,
    Inode,
    Mount,
    Node,
    Superblock,
    Time,
    Xattr,
)
from criu_detached.images.wire import WireError, decode, encode

HEADER = Header(format=FORMAT, boot_id=b"boot", machine=b"7.0")
MOUNT = Mount(
    mnt_id=300,
    origin=BIND_SOURCE,
    root=b"/tree",
    root_type=stat.S_IFDIR,
    superblock=Superblock(fs_type=b"tmpfs", magic=0x01021994, dev=40),
    bind_source=BindSource(mnt_id=30, mountpoint=b"/mnt", path=b"tree"),
)
FILE = File(mnt_id=300, ino=5, dev=40, mode=stat.S_IFREG | 0o644, path=b"file")
GHOST = Ghost(
    file=File(
        mnt_id=300,
        ino=6,
        dev=40,
        mode=stat.S_IFREG | 0o600,
        path=b"deleted",
        handle=Handle(type=1, bytes=b"handle"),
    ),
    inode=Inode(
        uid=1000,
        gid=100,
        atime=Time(sec=1, nsec=2),
        mtime=Time(sec=(1 << 64) - 1, nsec=999_999_999),
        size=5,
        xattrs=[Xattr(name=b"user.a", value=b"1"), Xattr(name=b"user.b")],
        data_at=8,
        data_size=21,
    ),
)
SOCKET = BoundSocket(id=1, mnt_id=300, name=b"/mnt/tree/socket", directory=b".")
EXT_FILE = ExtFile(id=7, flags=os.O_RDWR, pos=3, mnt_id=300, ino=5)


def write_all(directory: int) -> None:
    """A file with one record of each kind."""
    writer = RecordWriter(directory, HEADER)
    writer.mount(MOUNT)
    writer.file(FILE)
    writer.ghost(GHOST)
    writer.ext_file(EXT_FILE)
    writer.bound_socket(SOCKET)


@pytest.fixture
def written(directory: int, tmp_path: Path) -> bytes:
    """The bytes of such a file, which is in the directory."""
    write_all(directory)
    return (tmp_path / NAME).read_bytes()


def read_all(directory: int) -> Records:
    """Read the files too, which otherwise is done when one is asked for."""
    records = read_records(directory)
    try:
        assert records.files is not None
    except WireError as error:
        raise damaged(error) from error
    return records


def refused(directory: int, *parts: str) -> None:
    """Reading fails with one line that names the file and says what is wrong."""
    with pytest.raises(DetachedError) as error:
        read_all(directory)
    text = str(error.value)
    assert len(text.splitlines()) == 1
    for part in (NAME, *parts):
        assert part in text


def test_what_is_written_is_read(directory: int) -> None:
    write_all(directory)
    records = read_records(directory)
    assert records.header == HEADER
    assert records.mounts == {300: MOUNT}
    assert records.files == {(300, 5): FILE}
    assert records.ghosts == {(300, 6): GHOST}
    assert records.ext_files == {7: EXT_FILE}
    assert records.bound_sockets == {1: SOCKET}


def test_whole_after_every_record(directory: int) -> None:
    writer = RecordWriter(directory, HEADER)
    assert read_records(directory).mounts == {}
    writer.mount(MOUNT)
    assert read_records(directory).mounts == {300: MOUNT}
    for inode in range(1, 200):
        writer.file(File(mnt_id=300, ino=inode, path=b"f%d" % inode))
        assert len(read_records(directory).files) == inode


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


def test_oversized_file(directory: int, tmp_path: Path, written: bytes) -> None:
    os.truncate(tmp_path / NAME, MAX_FILE + 1)
    refused(directory, "damaged", str(MAX_FILE))


@pytest.mark.parametrize("format_", [0, FORMAT + 1, (1 << 64) - 1])
def test_other_version(directory: int, format_: int) -> None:
    RecordWriter(directory, Header(format=format_))
    refused(directory, f"format {format_}", f"format {FORMAT}", "version of criu-detached")


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


def test_record_that_is_too_large(directory: int) -> None:
    """It is refused when it is written, and what was there before is whole."""
    writer = RecordWriter(directory, HEADER)
    with pytest.raises(DetachedError, match="limits"):
        writer.mount(Mount(mnt_id=1, root=b"x" * MAX_ENTRY))
    writer.mount(MOUNT)
    assert read_records(directory).mounts == {300: MOUNT}


def test_longest_path(directory: int) -> None:
    writer = RecordWriter(directory, HEADER)
    writer.mount(MOUNT)
    writer.file(File(mnt_id=300, ino=1, path=b"p" * 4096))
    assert len(read_records(directory).files[300, 1].path) == 4096


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


def test_reading_leaves_no_fd_open(directory: int, tmp_path: Path, written: bytes) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    read_records(directory)
    (tmp_path / NAME).write_bytes(written[:-1])
    refused(directory)
    assert sorted(os.listdir("/proc/self/fd")) == before


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
