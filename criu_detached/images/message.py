# SPDX-License-Identifier: GPL-2.0-only
"""How a record is declared: a class whose attributes are its fields, each a kind and a number.

    class Handle(Message):
        type: int = uint(1)
        bytes: bytes = binary(2)

The annotations are for the type checker, which takes such a class for a dataclass. At run time what
is assigned counts alone: the code that CRIU loads has no annotations (plugin/embed/freeze.py).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing is slow to import
    from typing import Any, ClassVar, TypeVar, dataclass_transform

    M = TypeVar("M", bound="Message")
else:

    def dataclass_transform(**_):
        """Stand in for the one of typing, which is there for the type checker."""
        return lambda cls: cls


VARINT, LENGTH, FIXED32_WIRE = 0, 2, 5  # wire types of protobuf


class Kind:
    """A kind of field.

    Attributes:
        wire_type: how a value is written.
        default: what a field is that was not written; () stands for a list of its own.
    """

    __slots__ = ("default", "wire_type")

    def __init__(self, wire_type: int, default: Any) -> None:
        self.wire_type = wire_type
        self.default = default


UINT = Kind(VARINT, 0)
FIXED32 = Kind(FIXED32_WIRE, 0)
BINARY = Kind(LENGTH, b"")
BINARY_LIST = Kind(LENGTH, ())
MESSAGE = Kind(LENGTH, None)
MESSAGE_LIST = Kind(LENGTH, ())

LISTS = (BINARY_LIST, MESSAGE_LIST)


class Field:
    """A field of a record.

    Attributes:
        name: of the attribute; the class that the field is of sets it.
        number: in the schema.
        kind: one of those above.
        cls: class of the message, or of the messages in the list; else None.
        tag: what is written before a value, a number.
        head: its bytes.
    """

    __slots__ = ("cls", "head", "kind", "name", "number", "tag")

    def __init__(self, number: int, kind: Kind, cls: type[Message] | None = None) -> None:
        self.name = ""
        self.number = number
        self.kind = kind
        self.cls = cls
        self.tag = tag = number << 3 | kind.wire_type
        # A varint, of two bytes from number 16 on.
        self.head = bytes((tag,)) if tag < 0x80 else bytes((tag & 0x7F | 0x80, tag >> 7))


# What declares a field. All return a Field; to the type checker they return what an object of the
# class has in its place.


def uint(number: int) -> int:
    """Declare a number, not negative, of at most 64 bits; also for bool, int32 and an enum."""
    return Field(number, UINT)  # type: ignore[return-value]


def fixed32(number: int) -> int:
    """Declare a number of 32 bits that is written even when it is 0, always in four bytes."""
    return Field(number, FIXED32)  # type: ignore[return-value]


def binary(number: int) -> bytes:
    """Declare bytes."""
    return Field(number, BINARY)  # type: ignore[return-value]


def binaries(number: int) -> list[bytes]:
    """Declare a list of bytes: repeated in the schema."""
    return Field(number, BINARY_LIST)  # type: ignore[return-value]


def message(number: int, cls: type[M]) -> M | None:
    """Declare another record, or none."""
    return Field(number, MESSAGE, cls)  # type: ignore[return-value]


def messages(number: int, cls: type[M]) -> list[M]:
    """Declare a list of other records: repeated in the schema."""
    return Field(number, MESSAGE_LIST, cls)  # type: ignore[return-value]


@dataclass_transform(kw_only_default=True)
class Message:
    """A record. It is made with its fields by name; those that are not given are 0, empty or None.

    Attributes:
        fields: those that its class declares, in that order.
        by_tag: the same by their tags.

    Raises:
        TypeError: there is no field of that name.
        AttributeError: likewise, when an attribute is set.
    """

    fields: ClassVar[tuple[Field, ...]] = ()
    by_tag: ClassVar[dict[int, Field]] = {}
    _defaults: ClassVar[dict[str, Any]] = {}

    def __init_subclass__(cls) -> None:
        fields = []
        for name, field in vars(cls).items():
            if type(field) is Field:
                field.name = name
                fields.append(field)
        cls.fields = tuple(fields)
        cls.by_tag = {field.tag: field for field in fields}
        cls._defaults = {field.name: field.kind.default for field in fields}
        cls.__init__ = _constructor(cls)  # type: ignore[method-assign]

    if not TYPE_CHECKING:  # to the type checker this would mean that any attribute can be set

        def __setattr__(self, name, value):
            if name not in self._defaults:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            self.__dict__[name] = value

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.__dict__.items())
        return f"{type(self).__name__}({shown})"


_set_dict = vars(Message)["__dict__"].__set__


def _constructor(cls: type[Message]) -> Any:
    """Return a class's __init__: a closure, for a dump makes a record for every file."""
    defaults = cls._defaults
    count = len(defaults)
    lists = [field.name for field in cls.fields if field.kind in LISTS]

    def __init__(self: Message, **given: Any) -> None:  # noqa: N807
        values = defaults | given
        if len(values) != count:
            (name, *_) = [name for name in given if name not in defaults]
            raise TypeError(f"{cls.__name__}() got an unexpected keyword argument {name!r}")
        for name in lists:
            values[name] = list(values[name])
        _set_dict(self, values)

    return __init__
