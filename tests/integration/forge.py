"""Records that no dump writes: a field is another, lost, doubled or cut; the checksum is right."""

from __future__ import annotations

import random
import struct
import zlib

HEADER = 8  # two magic numbers
COUNT, CRC = -9, -4  # where the trailer has the number of entries, and the checksum

NUMBERS = [0, 1, 2, 5, 255, 4096, 0o40755, 0o120777, 0o60600, 0o140755]
NUMBERS += [(1 << bits) - less for bits in (31, 32, 62, 63, 64) for less in (0, 1)][:-2]
NUMBERS += [(1 << 64) - 1]
TEXTS = [b"", b".", b"..", b"/", b"../../etc/passwd", b"a/../b", b"/etc", b"\0", b"a\0b", b"tree"]
TEXTS += [
    b"tree/file",
    b"tree/link",
    b"d",
    b"x" * 5000,
    b"x/" * 2000 + b"x",
    b"/proc/self/root/etc",
]
TEXTS += [b"tmpfs", b"ramfs", b"ext4", b"overlay", b"proc", b"size=1", b"size=-1", b"nr_inodes=1"]
TEXTS += [b"0 0 4294967295", b"99999999999 0 1", b"user.x", b"security.capability", b"\xff\xfe"]

Field = tuple[int, int | bytes]  # tag, and a number, a string or a message


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7


def _fields(message: bytes) -> list[Field]:
    """The fields of what may be a message; raises IndexError or ValueError when it is none."""
    found: list[Field] = []
    at = 0
    while at < len(message):
        tag, at = _read_varint(message, at)
        value, at = _read_varint(message, at)
        if tag & 7 == 0:
            found.append((tag, value))
        elif tag & 7 == 2 and at + value <= len(message):
            found.append((tag, message[at : at + value]))
            at += value
        else:
            raise ValueError(tag)
    return found


def _message(fields: list[Field]) -> bytes:
    parts = []
    for tag, value in fields:
        if isinstance(value, int):
            parts += [_varint(tag), _varint(value)]
        else:
            parts += [_varint(tag), _varint(len(value)), value]
    return b"".join(parts)


def _forge_bytes(chance: random.Random, data: bytes) -> bytes:
    """Another text, a flipped bit, or a cut."""
    how = chance.random()
    if not data or how < 0.5:
        return chance.choice(TEXTS)
    changed = bytearray(data)
    at = chance.randrange(len(changed))
    if how < 0.8:
        changed[at] ^= 1 << chance.randrange(8)
    else:
        del changed[at:]
    return bytes(changed)


def _forge_message(chance: random.Random, message: bytes) -> bytes:
    """Change a field of a message, or of one in it."""
    try:
        fields = _fields(message)
    except (IndexError, ValueError):
        fields = []
    if not fields or chance.random() < 0.1:
        return _forge_bytes(chance, message)
    at = chance.randrange(len(fields))
    tag, value = fields[at]
    how = chance.random()
    if how < 0.08:
        del fields[at]
    elif how < 0.16:
        fields.insert(at, chance.choice(fields))
    elif isinstance(value, int):
        near = [value + 1, max(value - 1, 0), value ^ 1 << chance.randrange(64)]
        fields[at] = tag, chance.choice([*near, chance.choice(NUMBERS)]) % (1 << 64)
    else:
        fields[at] = tag, _forge_message(chance, value)
    return _message(fields)


def _entries(records: bytes) -> list[bytes]:
    found = []
    at = HEADER
    while at < len(records):
        (size,) = struct.unpack_from("<I", records, at)
        found.append(records[at + 4 : at + 4 + size])
        at += 4 + size
    return found


def forge(records: bytes, seed: int) -> bytes:
    """Change a record file.

    Args:
        records: as a dump wrote it.
        seed: the same one forges in the same way again.

    Returns:
        A file with the right number of entries and the right checksum.
    """
    chance = random.Random(seed)
    *entries, trailer = _entries(records)
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        how, at = chance.random(), chance.randrange(len(entries))
        if how < 0.05 and len(entries) > 1:
            del entries[at]
        elif how < 0.1:
            entries.insert(at, chance.choice(entries))
        else:
            entries[at] = _forge_message(chance, entries[at])
    body = records[:HEADER]
    body += b"".join(struct.pack("<I", len(entry)) + entry for entry in entries)
    end = bytearray(trailer)
    struct.pack_into("<I", end, len(end) + COUNT, len(entries))
    struct.pack_into("<I", end, len(end) + CRC, zlib.crc32(body))
    return body + struct.pack("<I", len(end)) + bytes(end)
