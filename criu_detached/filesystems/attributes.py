# SPDX-License-Identifier: GPL-2.0-only
"""Attributes of a recorded mount, id-map included, as mount_setattr(2) takes them."""

from __future__ import annotations

from criu_detached import kernel
from criu_detached.filesystems.idmap import format_id_map
from criu_detached.images.records import Mount
from criu_detached.kernel import namespaces

# Attributes that a record may have.
KNOWN = (
    kernel.MOUNT_ATTR_RDONLY
    | kernel.MOUNT_ATTR_NOSUID
    | kernel.MOUNT_ATTR_NODEV
    | kernel.MOUNT_ATTR_NOEXEC
    | kernel.MOUNT_ATTR__ATIME
    | kernel.MOUNT_ATTR_NODIRATIME
    | kernel.MOUNT_ATTR_NOSYMFOLLOW
)


def attributes_to_change(mount: Mount) -> tuple[int, int]:
    """Return the attributes to set and those to clear on a clone of the source, MOUNT_ATTR_*.

    Args:
        mount: the record.
    """
    attr_set = mount.attr
    if needs_id_map(mount):
        attr_set |= kernel.MOUNT_ATTR_IDMAP
    # The kernel wants the whole field cleared when the access time mode is set.
    return attr_set, KNOWN & ~mount.attr | kernel.MOUNT_ATTR__ATIME


def needs_id_map(mount: Mount) -> bool:
    """Tell whether a clone of the source is to be given an id-map.

    Args:
        mount: the record.
    """
    source = mount.bind_source
    return bool(mount.uid_map or mount.gid_map) and not (source and source.id_mapped)


def make_user_namespace(mount: Mount) -> int:
    """Make the user namespace that gives a mount its id-map.

    It takes a fork, so it is not for a restored task.

    Args:
        mount: the record.

    Returns:
        An fd, the caller's; -1 when the mount needs none.

    Raises:
        DetachedError: the record's id-map is malformed.
        OSError: the kernel refuses the id-map.
    """
    if not needs_id_map(mount):
        return -1
    return namespaces.user_namespace(format_id_map(mount.uid_map), format_id_map(mount.gid_map))
