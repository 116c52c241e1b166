"""The wire format: what is written is read again, and what is no message is refused."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criu_detached.images.message import Message
from criu_detached.images.records import (
    Entry,
    File,
    Ghost,
    Handle,
    Header,
    Inode,
    Mount,
    Superblock,
    Trailer,
    Xattr,
)
from criu_detached.images.wire import WireError, decode, encode


@pytest.mark.parametrize(
    ("message", "written"),
    [
        (Header(), ""),
        (Header(format=1), "08 01"),
        (Header(format=300), "08 ac 02"),
        (Header(boot_id=b"ab"), "12 02 61 62"),
        (File(dev=(1 << 64) - 1), "18 ff ff ff ff ff ff ff ff ff 01"),
        (Trailer(), "0d 00 00 00 00 15 00 00 00 00"),
        (Trailer(entries=1, crc32=0x01020304), "0d 01 00 00 00 15 04 03 02 01"),
        (Mount(uid_map=[b"a", b""]), "42 01 61 42 00"),
        (Mount(superblock=Superblock()), "32 00"),
        (Entry(trailer=Trailer()), "7a 0a 0d 00 00 00 00 15 00 00 00 00"),
        (File(handle=Handle(type=1, bytes=b"x")), "3a 05 08 01 12 01 78"),
        (Inode(xattrs=[Xattr(name=b"a"), Xattr()]), "3a 03 0a 01 61 3a 00"),
        (Inode(xattrs=[Xattr(value=b"x" * 200)]), "3a cb 01 12 c8 01" + " 78" * 200),
    ],
    ids=str,
)
def test_examples(message: Message, written: str) -> None:
    assert encode(message).hex(" ") == written
    assert decode(type(message), bytes.fromhex(written)) == message


def test_size_of_more_than_one_byte() -> None:
    message = Header(boot_id=b"x" * 200)
    assert encode(message)[:3] == b"\x12\xc8\x01"
    assert decode(Header, encode(message)) == message


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("08", "cut off"),
        ("08 80", "cut off"),
        ("12 05 61", "cut off"),
        ("12", "cut off"),
        ("80", "cut off"),
        ("08 01 08 02", "twice"),
        ("12 01 61 12 01 61", "twice"),
        ("20 01", "unknown field 4"),
        ("02 00", "unknown field 0"),
        ("0a 01 61", "another type"),
        ("10 01", "another type"),
        ("0d 01 00 00 00", "another type"),
        ("09 01 00 00 00 00 00 00 00", "another type"),
        ("0b", "wire type 3"),
        ("0c", "wire type 4"),
        ("0e 01", "wire type 6"),
        ("08 ff ff ff ff ff ff ff ff ff 02", "64 bits"),
        ("08 80 80 80 80 80 80 80 80 80 80 01", "64 bits"),
        ("12 ff ff ff ff ff ff ff ff ff 01", "cut off"),
    ],
)
def test_refused(written: str, why: str) -> None:
    with pytest.raises(WireError, match=why):
        decode(Header, bytes.fromhex(written))


def test_message_within_is_checked_too() -> None:
    with pytest.raises(WireError, match="cut off"):
        decode(Entry, b"\x0a\x01\x08")


def test_message_in_a_list_is_checked_too() -> None:
    with pytest.raises(WireError, match="cut off"):
        decode(Inode, b"\x3a\x02\x0a\x05")
    with pytest.raises(WireError, match="another type"):
        decode(Inode, b"\x38\x01")


def test_list_is_read_from_wherever_its_items_are() -> None:
    """Protobuf lets other fields stand between them."""
    first, second = Xattr(name=b"1"), Xattr(name=b"2")
    written = encode(Inode(xattrs=[first])) + encode(Inode(uid=7)) + encode(Inode(xattrs=[second]))
    assert decode(Inode, written) == Inode(uid=7, xattrs=[first, second])


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    """Random bytes are a message or raise WireError, nothing else."""
    try:
        message = decode(Entry, data)
    except WireError:
        return
    assert decode(Entry, encode(message)) == message


@given(st.data())
def test_any_change(data: st.DataObject) -> None:
    """A changed message is another one or raises WireError, nothing else."""
    superblock = Superblock(fs_type=b"ext4", magic=0xEF53, dev=7, fsid=1 << 63, uuid=b"u" * 16)
    mount = Mount(mnt_id=300, origin=1, root=b"/a", superblock=superblock, uid_map=[b"0 1 2"])
    ghost = Ghost(file=File(path=b"a"), inode=Inode(xattrs=[Xattr(name=b"user.a", value=b"b")]))
    entry = data.draw(st.sampled_from([Entry(mount=mount), Entry(ghost=ghost)]))
    written = bytearray(encode(entry))
    at = data.draw(st.integers(0, len(written) - 1))
    written[at] = data.draw(st.integers(0, 255))
    with contextlib.suppress(WireError):
        decode(Entry, bytes(written))
