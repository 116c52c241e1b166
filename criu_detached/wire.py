# SPDX-License-Identifier: GPL-2.0-only
"""The protobuf wire format, for the messages of ``records.py`` alone.

Why not the protobuf package: importing it took 35 ms (protobuf 4.21, Python 3.14),
more than a whole dump may cost, and this module runs inside CRIU. The schema is
proto/criu_detached.proto; tests/unit/test_records.py checks this code against the
protobuf package, field by field and in both directions.

Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing is slow to import
    from typing import Any, ClassVar

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5

# Kinds of field: how the value is written, and its default.
UINT = "uint"
FIXED = "fixed32"
BYTES = "bytes"
BYTES_LIST = "bytes list"

_MAX_UINT = 1 << 64


class WireError(ValueError):
    """Bytes that are not such a message; the text says why."""


class Message:
    """A record. Subclasses list their fields as (number, name, kind or message class)."""

    FIELDS: ClassVar[tuple[tuple[int, str, Any], ...]] = ()

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)
        for _, name, kind in self.FIELDS:
            if name not in values:
                self.__dict__[name] = _default(kind)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for _, name, _ in self.FIELDS)
        return f"{type(self).__name__}({fields})"


def _default(kind: Any) -> Any:
    if kind is UINT or kind is FIXED:
        return 0
    if kind is BYTES:
        return b""
    return [] if kind is BYTES_LIST else None


def _varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _delimited(number: int, payload: bytes) -> bytes:
    return _varint(number << 3 | LENGTH) + _varint(len(payload)) + payload


def encode(message: Message) -> bytes:
    """Return the message in protobuf's wire format; proto3 defaults are left out.

    FIXED fields are always written, so that their message has one size.
    """
    values = message.__dict__
    parts = []
    for number, name, kind in message.FIELDS:
        value = values[name]
        if kind is FIXED:
            parts.append(_varint(number << 3 | FIXED32) + value.to_bytes(4, "little"))
        elif kind is BYTES_LIST:
            parts.extend(_delimited(number, item) for item in value)
        elif value is None or value == 0 or value == b"":
            continue
        elif kind is UINT:
            parts.append(_varint(number << 3 | VARINT) + _varint(value))
        else:
            parts.append(_delimited(number, value if kind is BYTES else encode(value)))
    return b"".join(parts)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data):
            raise WireError("a number is cut off")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
    if shift > 63 or value >= _MAX_UINT:
        raise WireError("a number is larger than 64 bits")
    return value, at


def _read_field(data: bytes, at: int, wire: int) -> tuple[int | bytes, int]:
    if wire == VARINT:
        return _read_varint(data, at)
    if wire == LENGTH:
        size, at = _read_varint(data, at)
    elif wire in (FIXED32, FIXED64):
        size = 4 if wire == FIXED32 else 8
    else:
        raise WireError(f"wire type {wire} is unknown")
    if size > len(data) - at:
        raise WireError("a field is cut off")
    return data[at : at + size], at + size


def _expected_wire(kind: Any) -> int:
    return VARINT if kind is UINT else FIXED32 if kind is FIXED else LENGTH


def decode(cls: type[Any], data: bytes) -> Any:
    """Return the message that the bytes hold.

    Args:
        cls: the message class.
        data: all of its bytes.

    Raises:
        WireError: they are cut off, of another type, or repeat a field.
    """
    fields = {number: (name, kind) for number, name, kind in cls.FIELDS}
    message = cls()
    seen = set()
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        value, at = _read_field(data, at, tag & 7)
        if tag >> 3 not in fields:
            raise WireError(f"{cls.__name__} has an unknown field {tag >> 3}")
        name, kind = fields[tag >> 3]
        if tag & 7 != _expected_wire(kind):
            raise WireError(f"{cls.__name__}.{name} has another type")
        if name in seen and kind is not BYTES_LIST:
            raise WireError(f"{cls.__name__}.{name} is there twice")
        seen.add(name)
        if kind is BYTES_LIST:
            getattr(message, name).append(value)
        else:
            setattr(message, name, _convert(kind, value))
    return message


def _convert(kind: Any, value: Any) -> Any:
    if kind is UINT or kind is BYTES:
        return value
    if kind is FIXED:
        return int.from_bytes(value, "little")
    return decode(kind, value)
