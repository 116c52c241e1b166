# SPDX-License-Identifier: GPL-2.0-only
"""The protobuf wire format, for the messages of ``images/records.py`` alone.

Why not the protobuf package: importing it took 35 ms (protobuf 4.21, Python 3.14),
more than a whole dump may cost, and this module runs inside CRIU. The schema is
proto/criu_detached.proto; tests/unit/images/test_records.py checks this code against the
protobuf package, field by field and in both directions.

Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing is slow to import
    from typing import Any, ClassVar

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5

# Kinds of field: how the value is written, and its default.
UINT = "uint"
FIXED = "fixed32"
BYTES = "bytes"
BYTES_LIST = "bytes list"


class ListOf:
    """A repeated message."""

    def __init__(self, cls: type[Message]) -> None:
        self.cls = cls


_MAX_UINT = 1 << 64


class WireError(ValueError):
    """Bytes that are not such a message; the text says why."""


class Message:
    """A record. Subclasses list their fields as (number, name, kind or message class)."""

    FIELDS: ClassVar[tuple[tuple[int, str, Any], ...]] = ()
    # Derived from FIELDS, for speed: a dump writes a record for every file.
    _defaults: ClassVar[dict[str, Any]] = {}
    _lists: ClassVar[tuple[str, ...]] = ()
    _tags: ClassVar[tuple[tuple[str, Any, bytes], ...]] = ()
    _by_tag: ClassVar[dict[int, tuple[str, Any]]] = {}

    def __init_subclass__(cls) -> None:
        cls._defaults, cls._by_tag = {}, {}
        lists, tags = [], []
        for number, name, kind in cls.FIELDS:
            tag = number << 3 | _WIRES.get(kind, _LENGTH)
            cls._defaults[name] = _DEFAULTS.get(kind)
            cls._by_tag[tag] = (name, kind)
            tags.append((name, kind, varint(tag)))
            if _is_list(kind):
                cls._defaults[name] = ()
                lists.append(name)
        cls._lists, cls._tags = tuple(lists), tuple(tags)

    def __init__(self, **values: Any) -> None:
        self.__dict__ = self._defaults | values
        for name in self._lists:
            setattr(self, name, list(getattr(self, name)))

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for _, name, _ in self.FIELDS)
        return f"{type(self).__name__}({fields})"


# Of the kinds that are no messages.
_DEFAULTS = {UINT: 0, FIXED: 0, BYTES: b""}
_WIRES = {UINT: _VARINT, FIXED: _FIXED32}


def _is_list(kind: Any) -> bool:
    return kind is BYTES_LIST or isinstance(kind, ListOf)


# Modes, devices, mount ids and lengths repeat from file to file.
_SHORT: dict[int, bytes] = {}


def varint(value: int) -> bytes:
    """Return a number of at most 64 bits as protobuf's varint."""
    known = _SHORT.get(value)
    if known is not None:
        return known
    out = bytearray()
    rest = value
    while rest >= 0x80:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    out.append(rest)
    if value < 1 << 16:
        _SHORT[value] = bytes(out)
    return bytes(out)


def encode(message: Message) -> bytes:
    """Return the message in protobuf's wire format; proto3 defaults are left out.

    FIXED fields are always written, so that their message has one size.
    """
    values = message.__dict__
    out = b""
    for name, kind, tag in message._tags:
        value = values[name]
        if kind is FIXED:
            out += tag + value.to_bytes(4, "little")
        elif not value:  # a message is true
            continue
        elif kind is UINT:
            out += tag + varint(value)
        elif kind is BYTES:
            out += tag + varint(len(value)) + value
        elif kind is BYTES_LIST:
            for item in value:
                out += tag + varint(len(item)) + item
        elif isinstance(kind, ListOf):
            for item in value:
                payload = encode(item)
                out += tag + varint(len(payload)) + payload
        else:
            payload = encode(value)
            out += tag + varint(len(payload)) + payload
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


def _read_field(data: bytes, at: int, wire: int) -> tuple[Any, int]:
    if wire == _VARINT:
        return _read_varint(data, at)
    if wire == _LENGTH:
        size, at = _read_varint(data, at)
    elif wire in (_FIXED32, _FIXED64):
        size = 4 if wire == _FIXED32 else 8
    else:
        raise WireError(f"wire type {wire} is unknown")
    if size > len(data) - at:
        raise WireError("a field is cut off")
    return data[at : at + size], at + size


def decode(cls: type[Any], data: bytes) -> Any:
    """Return the message that the bytes hold.

    Args:
        cls: the message class.
        data: all of its bytes.

    Raises:
        WireError: they are cut off, of another type, or repeat a field.
    """
    message = cls()
    values, by_tag = message.__dict__, cls._by_tag
    seen = set()
    at, end = 0, len(data)
    while at < end:
        tag, at = _read_varint(data, at)
        value, at = _read_field(data, at, tag & 7)
        if tag not in by_tag:
            raise _unknown_field(cls, tag)
        name, kind = by_tag[tag]
        if name not in seen:
            seen.add(name)
        elif not _is_list(kind):
            raise WireError(f"{cls.__name__}.{name} is there twice")
        if kind is UINT or kind is BYTES:
            values[name] = value
        elif kind is BYTES_LIST:
            values[name].append(value)
        elif isinstance(kind, ListOf):
            values[name].append(decode(kind.cls, value))
        elif kind is FIXED:
            values[name] = int.from_bytes(value, "little")
        else:
            values[name] = decode(kind, value)
    return message


def _unknown_field(cls: type[Any], tag: int) -> WireError:
    for number, name, _ in cls.FIELDS:
        if number == tag >> 3:
            return WireError(f"{cls.__name__}.{name} has another type")
    return WireError(f"{cls.__name__} has an unknown field {tag >> 3}")
