# SPDX-License-Identifier: GPL-2.0-only
"""Layout of the record file ``criu-detached.img``: magic numbers, entries, limits, trailer.

Two magic numbers as in CRIU's images (criu/include/magic.h) come first, then entries of a 32-bit
little-endian size and an ``Entry`` message. The last entry is a trailer with the number of entries
and a checksum. docs/image-format.md describes it; record_writer.py writes such a file, and
record_reader.py reads one.
"""

from __future__ import annotations

from binascii import crc32

from criu_detached.errors import DetachedError
from criu_detached.images.message import Message
from criu_detached.images.records import FORMAT, Entry, Header, Trailer
from criu_detached.images.wire import WireError, decode, encode, varint

NAME = "criu-detached.img"

MAX_FILE = 64 << 20  # bytes; half a million files
MAX_ENTRY = 256 << 10  # bytes; a path has at most 4096, an extended attribute 64 KiB

OWN_MAGIC = 0x44544D31  # "1MTD"; CRIU's own are coordinates of towns


def magics(own: int) -> bytes:
    """Return what a file among CRIU's images begins with: their common magic, and its own."""
    common = 0x54564319  # IMG_COMMON_MAGIC, criu/include/magic.h
    return common.to_bytes(4, "little") + own.to_bytes(4, "little")


MAGICS = magics(OWN_MAGIC)

# Which field of Entry holds a record, as its tag on the wire.
ENTRY_TAGS = {field.cls: field.head for field in Entry.fields}


def framed(record: Message) -> bytes:
    """Return a record as an entry of the file: its size, and an Entry with that one field.

    Entry is written here and not by encode(), for speed.
    """
    payload = encode(record)
    payload = ENTRY_TAGS[type(record)] + varint(len(payload)) + payload
    return len(payload).to_bytes(4, "little") + payload


TRAILER_SIZE = len(framed(Trailer()))  # whatever its numbers


def payloads_of(data: bytes) -> list[bytes]:
    """Return the Entry message of each entry of a record file, not decoded.

    Raises:
        WireError: the magic numbers, or the size of an entry, are wrong.
    """
    if data[: len(MAGICS)] != MAGICS:
        raise WireError("it does not start with the magic numbers of a record file")
    payloads = []
    at = len(MAGICS)
    end = len(data)
    while at < end:
        size = int.from_bytes(data[at : at + 4], "little")
        at += 4 + size
        if size == 0:
            raise WireError("an entry is empty")
        if size > MAX_ENTRY:
            raise WireError(f"an entry of {size} bytes is over the limit of {MAX_ENTRY}")
        if at > end:
            raise WireError("the last entry is cut off")
        payloads.append(data[at - size : at])
    return payloads


def checked_header(data: bytes, payloads: list[bytes]) -> Header:
    """Return the header of a record file whose version is known and whose trailer is right.

    Args:
        data: all of the file.
        payloads: its entries, as payloads_of() returns them.

    Raises:
        WireError: header or trailer is missing, or the trailer tells of other entries.
        DetachedError: the version is unknown.
    """
    trailer = decode(Entry, payloads[-1]).content() if len(payloads) > 1 else None
    if not isinstance(trailer, Trailer):
        raise WireError("its end is missing")
    header = decode(Entry, payloads[0]).content()
    if not isinstance(header, Header):
        raise WireError("its header is missing")
    if header.format != FORMAT:
        raise DetachedError(
            f"{NAME} has format {header.format}, this plugin reads format {FORMAT}:"
            " restore with the version of criu-detached that dumped it"
        )
    if trailer.entries != len(payloads) - 1:
        raise WireError(f"it holds {len(payloads) - 1} entries instead of {trailer.entries}")
    if trailer.crc32 != crc32(data[: -4 - len(payloads[-1])]):
        raise WireError("its checksum is wrong")
    return header


def damaged(error: WireError) -> DetachedError:
    """Say of a record file that it is damaged."""
    return DetachedError(
        f"{NAME} is damaged ({error}): restore from an undamaged copy of the images"
    )
