# SPDX-License-Identifier: GPL-2.0-only
"""Id-maps of mounts: owners as they are on the filesystem, from those that a mount shows."""

from __future__ import annotations

from criu_detached.errors import DetachedError


def unmapped(number: int, lines: list[bytes], what: str) -> int:
    """The owner on the filesystem.

    Args:
        number: user or group, as the mount shows it.
        lines: the mount's id-map, checked; empty: it has none.
        what: the file, for messages.

    Raises:
        DetachedError: the id-map does not lead to it.
    """
    if not lines:
        return number
    for line in lines:
        inside, outside, count = (int(text) for text in line.split())
        if outside <= number < outside + count:
            return number - outside + inside
    raise DetachedError(f"the id-map of a mount has no place for {number}, owner of {what}")


def unmapped_acl(value: bytes, uid_map: list[bytes], gid_map: list[bytes], what: str) -> bytes:
    """As unmapped, of an access control list as getxattr(2) gives it.

    Source: linux/posix_acl_xattr.h: a version of 4 bytes, then entries of 8: tag, permissions
    and id.
    """
    maps = {2: uid_map, 8: gid_map}  # ACL_USER, ACL_GROUP
    found = value[:4]
    for at in range(4, len(value), 8):
        tag = int.from_bytes(value[at : at + 2], "little")
        number = int.from_bytes(value[at + 4 : at + 8], "little")
        if tag in maps:
            number = unmapped(number, maps[tag], what)
        found += value[at : at + 4] + number.to_bytes(4, "little")
    return found
