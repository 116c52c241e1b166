# SPDX-License-Identifier: GPL-2.0-only
"""Attributes of a mount, id-map included, as mount_setattr(2) takes them."""

from __future__ import annotations

from criu_detached import kernel
from criu_detached.errors import DetachedError, quote
from criu_detached.images.records import Mount
from criu_detached.kernel import namespaces

# Those that a record may have.
KNOWN = (
    kernel.MOUNT_ATTR_RDONLY
    | kernel.MOUNT_ATTR_NOSUID
    | kernel.MOUNT_ATTR_NODEV
    | kernel.MOUNT_ATTR_NOEXEC
    | kernel.MOUNT_ATTR__ATIME
    | kernel.MOUNT_ATTR_NODIRATIME
    | kernel.MOUNT_ATTR_NOSYMFOLLOW
)


def mount_attributes(mount: Mount) -> tuple[int, int]:
    """What mount_setattr(2) is to set and to clear on a clone of the source, MOUNT_ATTR_*.

    Args:
        mount: its record.
    """
    attr_set = mount.attr
    if needs_id_map(mount):
        attr_set |= kernel.MOUNT_ATTR_IDMAP
    # The kernel wants the whole field cleared when the access time mode is set.
    return attr_set, KNOWN & ~mount.attr | kernel.MOUNT_ATTR__ATIME


def needs_id_map(mount: Mount) -> bool:
    """Tell whether a clone of the source is to be given an id-map."""
    source = mount.bind_source
    return bool(mount.uid_map or mount.gid_map) and not (source and source.id_mapped)


def user_namespace(mount: Mount) -> int:
    """Make the user namespace for a mount's id-map; it takes a fork, so not in a task.

    Args:
        mount: its record.

    Returns:
        An fd, the caller's; -1 when the mount needs none.

    Raises:
        DetachedError: the id-map of the record is none.
        OSError: the kernel refuses it.
    """
    if not needs_id_map(mount):
        return -1
    return namespaces.user_namespace(id_map_text(mount.uid_map), id_map_text(mount.gid_map))


def id_map_text(lines: list[bytes]) -> bytes:
    """Turn a record's id-map into what /proc/PID/uid_map takes.

    Args:
        lines: each of first id, id outside, how many.

    Raises:
        DetachedError: it is none.
    """
    for line in lines:
        numbers = line.split()
        if len(numbers) != 3 or not all(map(_is_id, numbers)):
            raise DetachedError(f"the id-map line {quote(line)} is invalid")
    return b"".join(line + b"\n" for line in lines)


def _is_id(text: bytes) -> bool:
    """Ten digits hold 32 bits; int() refuses thousands of them with another exception."""
    return text.isdigit() and len(text) <= 10 and int(text) < 1 << 32
