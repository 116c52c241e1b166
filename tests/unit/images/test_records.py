"""images/records.py is proto/criu_detached.proto: checked with the protobuf package."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
from google.protobuf import descriptor_pb2
from hypothesis import given
from hypothesis import strategies as st

from criu_detached.images import records
from criu_detached.images.message import (
    BINARY,
    BINARY_LIST,
    FIXED32,
    MESSAGE,
    MESSAGE_LIST,
    UINT,
    Kind,
    Message,
)
from criu_detached.images.records import Entry, ExtFile, File, Ghost, Handle, Header, Mount, Trailer
from criu_detached.images.wire import decode, encode

CLASSES: dict[str, type[Message]] = {
    name: value
    for name, value in vars(records).items()
    if isinstance(value, type) and issubclass(value, Message) and value is not Message
}

# What of a kind's numbers every type that the schema has for it can hold; see test_widths.
WIDTHS = {"bool": 1, "int32": 31, "uint32": 32, "fixed32": 32, "enum": 31, "uint64": 64}


def type_name(field: Any) -> str:
    """A field's type, as the schema names it."""
    names = [name for name in dir(field) if name.startswith("TYPE_")]
    (found,) = [name for name in names if getattr(field, name) == field.type]
    return found.removeprefix("TYPE_").lower()


def kind_of(field: Any) -> tuple[Kind, type[Message] | None]:
    """The kind that a field of the schema must be declared with, and the class if it has one."""
    name = type_name(field)
    repeated = field.is_repeated if hasattr(field, "is_repeated") else field.label == 3
    if name == "message":
        return MESSAGE_LIST if repeated else MESSAGE, CLASSES[field.message_type.name]
    if name == "bytes":
        return BINARY_LIST if repeated else BINARY, None
    assert not repeated and name in WIDTHS
    return FIXED32 if name == "fixed32" else UINT, None


def test_same_messages(schema: ModuleType) -> None:
    assert set(schema.DESCRIPTOR.message_types_by_name) == set(CLASSES)


@pytest.mark.parametrize("name", CLASSES)
def test_same_fields(schema: ModuleType, name: str) -> None:
    """Numbers, names and types, in the order of the schema."""
    expected = [(f.number, f.name, *kind_of(f)) for f in getattr(schema, name).DESCRIPTOR.fields]
    assert [(f.number, f.name, f.kind, f.cls) for f in CLASSES[name].fields] == expected


@pytest.mark.parametrize("name", [name for name in CLASSES if name != "Entry"])
def test_numbers_that_were_given_up_are_reserved(schema: ModuleType, name: str) -> None:
    """Images of an older version may have them. Only Entry keeps numbers free, for more records."""
    declared = schema.DESCRIPTOR.message_types_by_name[name]
    message = descriptor_pb2.DescriptorProto()
    declared.CopyToProto(message)
    reserved = {n for area in message.reserved_range for n in range(area.start, area.end)}
    numbers = {field.number for field in declared.fields}
    assert reserved | numbers == set(range(1, max(numbers) + 1))


@pytest.mark.parametrize("name", CLASSES)
def test_fields_are_annotated(name: str) -> None:
    """To the type checker there is no other field."""
    assert list(CLASSES[name].__annotations__) == [field.name for field in CLASSES[name].fields]


def test_same_origins(schema: ModuleType) -> None:
    values = dict(schema.Origin.items())
    assert values.pop("ORIGIN_UNSPECIFIED") == 0
    assert values == {name: getattr(records, name) for name in values}
    assert len(set(values.values())) == len(values)


def numbers(field: Any) -> st.SearchStrategy[int]:
    """Numbers that a field of the schema can hold."""
    if type_name(field) == "enum":
        return st.sampled_from([value.number for value in field.enum_type.values])
    return st.integers(0, (1 << WIDTHS[type_name(field)]) - 1)


def messages(descriptor: Any) -> st.SearchStrategy[Message]:
    """Any message of the schema, as our class."""
    values: dict[str, st.SearchStrategy[Any]] = {}
    for field in descriptor.fields:
        kind, _ = kind_of(field)
        if kind is BINARY:
            values[field.name] = st.binary(max_size=40)
        elif kind is BINARY_LIST:
            values[field.name] = st.lists(st.binary(max_size=20), max_size=3)
        elif kind in (UINT, FIXED32):
            values[field.name] = numbers(field)
        elif kind is MESSAGE_LIST:
            values[field.name] = st.lists(messages(field.message_type), max_size=3)
        else:
            values[field.name] = st.none() | messages(field.message_type)
    cls: Any = CLASSES[descriptor.name]
    return st.fixed_dictionaries(values).map(lambda found: cls(**found))


def as_protobuf(schema: ModuleType, message: Message) -> Any:
    """The same message in the protobuf package."""
    result = getattr(schema, type(message).__name__)()
    for field in message.fields:
        name, value = field.name, getattr(message, field.name)
        if field.kind is BINARY_LIST:
            getattr(result, name).extend(value)
        elif field.kind is MESSAGE_LIST:
            getattr(result, name).extend(as_protobuf(schema, item) for item in value)
        elif isinstance(value, Message):
            getattr(result, name).CopyFrom(as_protobuf(schema, value))
            getattr(result, name).SetInParent()
        elif value is not None:
            setattr(result, name, value)
    return result


@pytest.mark.parametrize("name", CLASSES)
@given(data=st.data())
def test_protobuf_reads_ours(schema: ModuleType, name: str, data: st.DataObject) -> None:
    message = data.draw(messages(getattr(schema, name).DESCRIPTOR))
    theirs = getattr(schema, name)()
    theirs.ParseFromString(encode(message))
    assert theirs == as_protobuf(schema, message)


@pytest.mark.parametrize("name", CLASSES)
@given(data=st.data())
def test_ours_reads_protobuf(schema: ModuleType, name: str, data: st.DataObject) -> None:
    message = data.draw(messages(getattr(schema, name).DESCRIPTOR))
    written = as_protobuf(schema, message).SerializeToString(deterministic=True)
    assert decode(CLASSES[name], written) == message
    assert decode(CLASSES[name], encode(message)) == message


def test_trailer_has_one_size() -> None:
    sizes = {
        len(encode(Entry(trailer=Trailer(entries=entries, crc32=crc))))
        for entries in (0, 1, (1 << 32) - 1)
        for crc in (0, 1, (1 << 32) - 1)
    }
    assert len(sizes) == 1


@pytest.mark.parametrize(
    "record", [Header(), Mount(), File(), ExtFile(), Ghost(), Trailer()], ids=repr
)
def test_content_of_an_entry(record: Message) -> None:
    entry = Entry()
    (name,) = [field.name for field in Entry.fields if field.cls is type(record)]
    setattr(entry, name, record)
    assert entry.content() is record


def test_content_of_a_bad_entry() -> None:
    assert Entry().content() is None
    assert Entry(header=Header(), file=File()).content() is None


def test_handle_holds_any_bytes() -> None:
    handle = Handle(type=0x81, bytes=bytes(range(128)))
    assert decode(Handle, encode(handle)) == handle
