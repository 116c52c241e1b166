"""Owners on a filesystem, from those that an id-mapped mount shows."""

from __future__ import annotations

import struct

import pytest

from criu_detached.errors import DetachedError
from criu_detached.filesystems.idmap import unmapped, unmapped_acl

UID_MAP = [b"0 70000 2", b"5 9 1"]
GID_MAP = [b"0 80000 10"]


def test_owners() -> None:
    shown = [70000, 70001, 9]
    assert [unmapped(number, UID_MAP, "it") for number in shown] == [0, 1, 5]
    assert unmapped(7, [], "it") == 7


@pytest.mark.parametrize("number", [0, 69999, 70002, 10])
def test_owner_without_a_place(number: int) -> None:
    with pytest.raises(DetachedError, match=f"no place for {number}, owner of it"):
        unmapped(number, UID_MAP, "it")


def acl(*entries: tuple[int, int, int]) -> bytes:
    """An access control list: tag, permissions and id of each entry."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)


def test_access_control_list() -> None:
    """Named users and groups have ids, the other entries have none."""
    shown = acl((1, 6, -1), (2, 7, 70001), (4, 4, -1), (8, 5, 80009), (16, 7, -1), (32, 0, -1))
    there = acl((1, 6, -1), (2, 7, 1), (4, 4, -1), (8, 5, 9), (16, 7, -1), (32, 0, -1))
    assert unmapped_acl(shown, UID_MAP, GID_MAP, "it") == there
    assert unmapped_acl(acl(), UID_MAP, GID_MAP, "it") == acl()
    with pytest.raises(DetachedError, match="owner of it"):
        unmapped_acl(acl((2, 7, 3)), UID_MAP, GID_MAP, "it")
