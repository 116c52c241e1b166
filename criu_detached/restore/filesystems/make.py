# SPDX-License-Identifier: GPL-2.0-only
"""From the record of a filesystem that nobody else shows to a mount of it, at restore.

Runs in a mount namespace of this process alone, before any task exists.
"""

from __future__ import annotations

import os
import stat

from criu_detached import kernel, paths
from criu_detached.errors import DetachedError, quote
from criu_detached.filesystems.types import FRESH, IN_MEMORY, KEYED, LAYERED, by_name
from criu_detached.kernel import new_mounts
from criu_detached.restore.filesystems.disk import check_mounted, find_devices, mount_again
from criu_detached.restore.filesystems.memory import fill, make_memory, set_limits
from criu_detached.restore.filesystems.overlay import mount_layers
from criu_detached.restore.filesystems.pseudo import mount_anew

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.filesystems.devices import Found
    from criu_detached.images.record_reader import Records
    from criu_detached.images.records import Filesystem
    from criu_detached.restore.realise import Means


def find_all_devices(records: Records) -> dict[int, list[Found]]:
    """Find what the filesystems lie on, opened, by their ids; see disk.find_devices.

    Args:
        records: all of the dump.

    Raises:
        DetachedError: a device is not there.
    """
    found: dict[int, list[Found]] = {}
    try:
        for number, filesystem in records.filesystems.items():
            if filesystem.devices:
                found[number] = find_devices(filesystem)
    except DetachedError:
        close_devices(found)
        raise
    return found


def close_devices(found: dict[int, list[Found]]) -> None:
    """Let go of devices: those that are mounted stay."""
    for devices in found.values():
        for device in devices:
            device.close()


def make_filesystems(records: Records, means: Means, found: dict[int, list[Found]]) -> None:
    """Mount every filesystem, or make it; their roots are in ``means.tops`` then.

    Args:
        records: all of the dump.
        means: what the mounts on them are realised with.
        found: the devices that they lie on.

    Raises:
        DetachedError: one of them cannot come back.
    """
    for number, filesystem in records.filesystems.items():
        devices = found.get(number, [])
        tree, same = _mount(filesystem, devices, means)
        try:
            top = means.tops[number] = _attach(tree)
            if filesystem.fresh:
                means.fresh[number] = same and bool(filesystem.keeps_inodes)
            if devices:
                check_mounted(filesystem, tree, devices)
        finally:
            os.close(tree)
        if _is_in_memory(filesystem):
            fill(top, records.nodes.get(number, []), _directories(records, number), means)


def _mount(filesystem: Filesystem, devices: list[Found], means: Means) -> tuple[int, bool]:
    """A tree fd of a filesystem, the caller's, and whether an overlay's layers are the same."""
    assert filesystem.superblock is not None  # check_filesystems
    name = filesystem.superblock.fs_type
    comes_back = by_name(name).comes_back
    if bool(filesystem.fresh) != (comes_back in (LAYERED, FRESH, KEYED)):
        raise DetachedError(
            f"filesystem {filesystem.id} does not come back as others of its type {quote(name)} do:"
            " are the images damaged?"
        )
    if comes_back == IN_MEMORY:
        return make_memory(filesystem), True
    if comes_back == LAYERED:
        return mount_layers(filesystem, means)
    if comes_back in (FRESH, KEYED):
        return mount_anew(filesystem), True
    return mount_again(filesystem, devices), True


def _is_in_memory(filesystem: Filesystem) -> bool:
    assert filesystem.superblock is not None  # check_filesystems
    return by_name(filesystem.superblock.fs_type).comes_back == IN_MEMORY


def _attach(tree: int) -> int:
    """Attach a new mount here, where it can be looked at.

    Returns:
        What its mounts are cloned from, the caller's. From Linux 6.15 on it is not attached: the
        clones of such a mount are of no namespace in particular, as what fsmount(2) gives. Those
        of an attached one are of this namespace, which will be gone, and with it the last chance
        to look at an anonymous mount. Before, only an attached mount is cloned.
    """
    try:
        top: int = kernel.clone_mount(tree)
    except OSError:
        top = os.dup(tree)
    new_mounts.attach_at_root(tree)
    return top


def settle_filesystems(records: Records, means: Means) -> None:
    """Give what was made its limits, which its making may have gone beyond for a moment.

    Args:
        records: all of the dump.
        means: with the roots of the filesystems.

    Raises:
        DetachedError: they are too low for what is in it.
    """
    for number, filesystem in records.filesystems.items():
        if _is_in_memory(filesystem):
            set_limits(filesystem, means.tops[number])


def _directories(records: Records, number: int) -> list[bytes]:
    """Those that have to be there: roots of mounts, and where sockets are to be bound."""
    roots = {
        mount.mnt_id: mount.bind_source.path
        for mount in records.mounts.values()
        if mount.filesystem == number
        and mount.bind_source is not None
        and stat.S_ISDIR(mount.root_type)
        and not mount.root_deleted
    }
    return [*roots.values()] + [
        paths.join(roots[socket.mnt_id], paths.directory_of_socket(socket.name, socket.directory))
        for socket in records.bound_sockets.values()
        if socket.mnt_id in roots
    ]
