# SPDX-License-Identifier: GPL-2.0-only
"""The protobuf wire format, for the messages of records.py alone.

Why not the protobuf package: importing it took 35 ms (protobuf 4.21, Python 3.14),
more than a whole dump may cost, and this module runs inside CRIU. The schema is
proto/criu_detached.proto; tests/unit/images/test_records.py checks this code against the
protobuf package, field by field and in both directions.

Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from criu_detached.images.message import (
    BINARY,
    BINARY_LIST,
    FIXED32,
    FIXED32_WIRE,
    LENGTH,
    LISTS,
    MESSAGE,
    UINT,
    VARINT,
    Message,
)

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing is slow to import
    from collections.abc import Callable
    from typing import Any, TypeVar

    M = TypeVar("M", bound=Message)

_MAX_UINT = 1 << 64


class WireError(ValueError):
    """Bytes that are not such a message; the text says why."""


# Numbers that were written: modes, devices, mount ids and lengths repeat from file to file.
_KNOWN: dict[int, bytes] = {}


def varint(value: int) -> bytes:
    """Return a number of at most 64 bits as protobuf's varint."""
    return _KNOWN.get(value) or _new_varint(value)


def _new_varint(value: int) -> bytes:
    digits = []  # of 7 bits, the lowest first
    rest = value
    while rest >= 0x80:
        digits.append(rest & 0x7F | 0x80)
        rest >>= 7
    digits.append(rest)
    written = bytes(digits)
    if value < 1 << 16:
        _KNOWN[value] = written
    return written


def encode(message: Message) -> bytes:
    """Return the message in protobuf's wire format; proto3 defaults are left out.

    FIXED32 fields are always written, so that their message has one size.
    """
    values = message.__dict__
    out = b""
    for field in message.fields:
        value, kind, head = values[field.name], field.kind, field.head
        if not value and kind is not FIXED32:  # a message is true
            continue
        if kind is UINT:
            out += head + (_KNOWN.get(value) or _new_varint(value))
        elif kind is BINARY:
            out += head + varint(len(value)) + value
        elif kind is MESSAGE:
            payload = encode(value)
            out += head + varint(len(payload)) + payload
        elif kind is FIXED32:
            out += head + value.to_bytes(4, "little")
        elif kind is BINARY_LIST:
            for item in value:
                out += head + varint(len(item)) + item
        else:
            for item in value:
                payload = encode(item)
                out += head + varint(len(payload)) + payload
    return out


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    try:
        value = data[at]
        if value < 0x80:
            return value, at + 1
        value &= 0x7F
        shift = 7
        while True:
            at += 1
            byte = data[at]
            value |= (byte & 0x7F) << shift
            shift += 7
            if shift > 70 or value >= _MAX_UINT:
                raise WireError("a number is larger than 64 bits")
            if byte < 0x80:
                return value, at + 1
    except IndexError:
        raise WireError("a number is cut off") from None


def _read_bytes(data: bytes, at: int) -> tuple[bytes, int]:
    size = data[at] if at < len(data) else 0x80
    if size < 0x80:  # as that of almost every path
        at += 1
    else:
        size, at = _read_varint(data, at)
    end = at + size
    if end > len(data):
        raise WireError("a field is cut off")
    return data[at:end], end


def _read_fixed32(data: bytes, at: int) -> tuple[int, int]:
    if at + 4 > len(data):
        raise WireError("a field is cut off")
    return int.from_bytes(data[at : at + 4], "little"), at + 4


# By wire type. Protobuf has one more, which no field of the schema has: of 64 bits.
_READERS: dict[int, Callable[[bytes, int], tuple[Any, int]]] = {
    VARINT: _read_varint,
    LENGTH: _read_bytes,
    FIXED32_WIRE: _read_fixed32,
}
_WIRE_TYPES = {*_READERS, 1}


def decode(cls: type[M], data: bytes) -> M:
    """Return the message that the bytes hold.

    Args:
        cls: the message class.
        data: all of its bytes.

    Raises:
        WireError: they are cut off, of another type, or repeat a field.
    """
    message = cls()
    values, by_tag = message.__dict__, cls.by_tag
    seen = set()
    at, end = 0, len(data)
    while at < end:
        tag = data[at]
        if tag < 0x80:  # as that of almost every field
            at += 1
        else:
            tag, at = _read_varint(data, at)
        field = by_tag.get(tag)
        if field is None:
            raise _unknown_field(cls, tag)
        name, kind = field.name, field.kind
        value, at = _READERS[tag & 7](data, at)
        if name not in seen:
            seen.add(name)
        elif kind not in LISTS:
            raise WireError(f"{cls.__name__}.{name} is there twice")
        if kind is UINT or kind is BINARY or kind is FIXED32:
            values[name] = value
        elif kind is BINARY_LIST:
            values[name].append(value)
        else:
            assert field.cls is not None  # it is a message
            part = decode(field.cls, value)
            if kind is MESSAGE:
                values[name] = part
            else:
                values[name].append(part)
    return message


def _unknown_field(cls: type[Message], tag: int) -> WireError:
    if tag & 7 not in _WIRE_TYPES:
        return WireError(f"wire type {tag & 7} is unknown")
    for field in cls.fields:
        if field.number == tag >> 3:
            return WireError(f"{cls.__name__}.{field.name} has another type")
    return WireError(f"{cls.__name__} has an unknown field {tag >> 3}")
