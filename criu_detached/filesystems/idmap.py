# SPDX-License-Identifier: GPL-2.0-only
"""Id-maps of mounts: checked, written for the kernel, and undone on an owner or an ACL.

A line of an id-map is, as in /proc/PID/uid_map: first id on the filesystem, first id that the
mount shows, how many.
"""

from __future__ import annotations

from criu_detached.errors import DetachedError, quote

_ACL_USER, _ACL_GROUP = 2, 8  # linux/posix_acl.h: tags of entries that have an id
_VERSION_SIZE = 4  # bytes (linux/posix_acl_xattr.h)
_ENTRY_SIZE = 8  # bytes: tag of 2, permissions of 2, id of 4


def format_id_map(lines: list[bytes]) -> bytes:
    """Check a record's id-map, and return what /proc/PID/uid_map takes.

    Args:
        lines: of the id-map.

    Raises:
        DetachedError: a line is malformed.
    """
    for line in lines:
        numbers = line.split()
        if len(numbers) != 3 or not all(map(_is_id, numbers)):
            raise DetachedError(f"the id-map line {quote(line)} is invalid")
    return b"".join(line + b"\n" for line in lines)


def _is_id(text: bytes) -> bool:
    """Tell a number of 32 bits: ten digits, for int() refuses thousands with another exception."""
    return text.isdigit() and len(text) <= 10 and int(text) < 1 << 32


def unmap_id(number: int, lines: list[bytes], what: str) -> int:
    """Return an owner as it is on the filesystem.

    Args:
        number: user or group, as the mount shows it.
        lines: the mount's id-map, checked; empty: it has none.
        what: the file, for messages.

    Raises:
        DetachedError: the id-map has no such owner.
    """
    if not lines:
        return number
    for line in lines:
        inside, outside, count = (int(text) for text in line.split())
        if outside <= number < outside + count:
            return number - outside + inside
    raise DetachedError(f"the id-map of a mount has no place for {number}, owner of {what}")


def unmap_acl(value: bytes, uid_map: list[bytes], gid_map: list[bytes], what: str) -> bytes:
    """Return an access control list as it is on the filesystem.

    Args:
        value: the list as getxattr(2) gives it (linux/posix_acl_xattr.h).
        uid_map: the mount's id-map of users, checked; empty: it has none.
        gid_map: that of groups, likewise.
        what: the file, for messages.

    Raises:
        DetachedError: the id-map has no place for somebody in the list.
    """
    maps = {_ACL_USER: uid_map, _ACL_GROUP: gid_map}
    found = value[:_VERSION_SIZE]
    for at in range(_VERSION_SIZE, len(value), _ENTRY_SIZE):
        tag = int.from_bytes(value[at : at + 2], "little")
        number = int.from_bytes(value[at + 4 : at + 8], "little")
        if tag in maps:
            number = unmap_id(number, maps[tag], what)
        found += value[at : at + 4] + number.to_bytes(4, "little")
    return found
