"""Id-maps as the kernel takes them, and owners on a filesystem from those that a mount shows."""

from __future__ import annotations

import struct

import pytest

from criu_detached.errors import DetachedError
from criu_detached.filesystems.idmap import format_id_map, unmap_acl, unmap_id

UID_MAP = [b"0 70000 2", b"5 9 1"]
GID_MAP = [b"0 80000 10"]


@pytest.mark.parametrize(
    ("lines", "text"),
    [([], b""), ([b"0 1000 1"], b"0 1000 1\n"), ([b"0 1000 1", b"1 5 9"], b"0 1000 1\n1 5 9\n")],
)
def test_format_id_map(lines: list[bytes], text: bytes) -> None:
    assert format_id_map(lines) == text


@pytest.mark.parametrize(
    "line",
    [b"", b"0 1", b"0 1 2 3", b"a 1 2", b"-1 1 2", b"0 0 4294967296", b"0 0x1 1", "0 1 ²".encode()],
)
def test_invalid_id_map(line: bytes) -> None:
    with pytest.raises(DetachedError, match="id-map line"):
        format_id_map([b"0 1 2", line])


def test_owners() -> None:
    shown = [70000, 70001, 9]
    assert [unmap_id(number, UID_MAP, "it") for number in shown] == [0, 1, 5]
    assert unmap_id(7, [], "it") == 7


@pytest.mark.parametrize("number", [0, 69999, 70002, 10])
def test_owner_without_a_place(number: int) -> None:
    with pytest.raises(DetachedError, match=f"no place for {number}, owner of it"):
        unmap_id(number, UID_MAP, "it")


def acl(*entries: tuple[int, int, int]) -> bytes:
    """An access control list: tag, permissions and id of each entry."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)


def test_access_control_list() -> None:
    """Named users and groups have ids, the other entries have none."""
    shown = acl((1, 6, -1), (2, 7, 70001), (4, 4, -1), (8, 5, 80009), (16, 7, -1), (32, 0, -1))
    there = acl((1, 6, -1), (2, 7, 1), (4, 4, -1), (8, 5, 9), (16, 7, -1), (32, 0, -1))
    assert unmap_acl(shown, UID_MAP, GID_MAP, "it") == there
    assert unmap_acl(acl(), UID_MAP, GID_MAP, "it") == acl()
    with pytest.raises(DetachedError, match="owner of it"):
        unmap_acl(acl((2, 7, 3)), UID_MAP, GID_MAP, "it")
