"""A record is made of its fields alone: whatever else is given or set is an error.

It is one for mypy, too: an ignored error that there is not is an error of mypy --strict.
"""

from __future__ import annotations

from typing import Any

import pytest

from criu_detached.images.message import Message, binary, uint
from criu_detached.images.records import Header, Inode, Mount, Trailer


def test_unknown_field() -> None:
    with pytest.raises(TypeError, match=r"Mount\(\) got an unexpected keyword argument 'orgin'"):
        Mount(mnt_id=1, orgin=1)  # type: ignore[call-arg]


def test_unknown_attribute() -> None:
    mount = Mount(mnt_id=1)
    with pytest.raises(AttributeError, match="'Mount' object has no attribute 'orgin'"):
        mount.orgin = 1  # type: ignore[attr-defined]
    assert mount == Mount(mnt_id=1)


def test_field_by_place() -> None:
    with pytest.raises(TypeError):
        Mount(1)  # type: ignore[misc]


def test_value_of_another_type() -> None:
    """This is for the type checker alone."""
    Mount(origin=b"1")  # type: ignore[arg-type]
    Mount().origin = b"1"  # type: ignore[assignment]


def test_field_of_another_type() -> None:
    class Wrong(Message):
        text: bytes = uint(1)  # type: ignore[assignment]
        number: int = binary(2)  # type: ignore[assignment]

    assert repr(Wrong()) == "Wrong(text=0, number=b'')"


def test_fields_need_no_annotations() -> None:
    """The code that CRIU loads has none."""
    bare: Any = type("Bare", (Message,), {"number": uint(1), "text": binary(20)})
    assert repr(bare(number=5)) == "Bare(number=5, text=b'')"


def test_defaults() -> None:
    assert (Mount().mnt_id, Mount().root, Mount().superblock, Mount().uid_map) == (0, b"", None, [])


def test_lists_are_not_shared() -> None:
    given = [b"0 1 2"]
    mount = Mount(uid_map=given)
    given.append(b"3 4 5")
    assert mount.uid_map == [b"0 1 2"]
    assert Mount().uid_map is not Mount().uid_map
    assert Inode().xattrs is not Inode().xattrs


def test_messages_compare_by_value() -> None:
    assert Header(format=1) == Header(format=1, boot_id=b"")
    assert Header(format=1) != Header(format=2)
    assert Header() != Trailer()


def test_message_shows_its_fields() -> None:
    assert repr(Header(format=1)) == "Header(format=1, boot_id=b'', machine=b'')"
