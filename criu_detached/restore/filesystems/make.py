# SPDX-License-Identifier: GPL-2.0-only
"""Filesystems that nobody else shows: from their records to a mount of each, at restore.

They are made in a mount namespace of this process alone, before any task exists.
"""

from __future__ import annotations

import os
import stat

from criu_detached import kernel, paths
from criu_detached.errors import DetachedError, quote
from criu_detached.filesystems.types import FRESH, IN_MEMORY, KEYED, LAYERED, by_name
from criu_detached.kernel import new_mounts
from criu_detached.kernel.fds import Fd
from criu_detached.restore.filesystems.disk import check_mounted, find_devices, remount
from criu_detached.restore.filesystems.fill import fill
from criu_detached.restore.filesystems.memory import make_memory, set_limits
from criu_detached.restore.filesystems.new_source import NewFilesystem, NewFilesystemSource
from criu_detached.restore.filesystems.overlay import mount_layers
from criu_detached.restore.filesystems.pseudo import mount_pseudo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

    from criu_detached.images.record_reader import Records
    from criu_detached.images.records import Filesystem, Mount
    from criu_detached.restore.context import ProcessFds
    from criu_detached.restore.filesystems.devices import Found


class NewFilesystems:
    """The filesystems of one restore, by their ids; the owner of their roots and devices."""

    def __init__(self, records: Records, same_boot: bool, fds: ProcessFds) -> None:
        """Find the devices that they lie on; see disk.find_devices.

        Args:
            records: all of the dump.
            same_boot: the dump was made on this very boot of the system.
            fds: those of this process.

        Raises:
            DetachedError: a device is not there.
        """
        self._records = records
        self._same_boot = same_boot
        self._fds = fds
        self._made: dict[int, NewFilesystem] = {}
        self._devices: dict[int, list[Found]] = {}
        try:
            for number, filesystem in self._records.filesystems.items():
                if filesystem.devices:
                    self._devices[number] = find_devices(filesystem)
        except DetachedError:
            self.close()
            raise

    def __enter__(self) -> Self:
        """Return them; roots and devices are closed at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of roots and devices: what is mounted stays."""
        self.close()

    def close(self) -> None:
        """Let go of roots and devices: what is mounted stays."""
        for devices in self._devices.values():
            for device in devices:
                device.close()
        for filesystem in self._made.values():
            filesystem.top.close()

    def make(self) -> None:
        """Mount every filesystem, in a mount namespace of this process alone.

        Raises:
            DetachedError: one of them cannot come back.
        """
        for number, filesystem in self._records.filesystems.items():
            devices = self._devices.get(number, [])
            tree, same = self._mount(filesystem, devices)
            with tree:
                fresh = bool(filesystem.fresh)
                same_inodes = same and bool(filesystem.keeps_inodes) if fresh else None
                made = self._made[number] = NewFilesystem(_attach(tree), same_inodes)
                if devices:
                    check_mounted(filesystem, tree, devices)
            if _is_in_memory(filesystem):
                nodes = self._records.nodes.get(number, [])
                fill(made.top, nodes, _directories(self._records, number), self._fds)

    def set_limits(self) -> None:
        """Give what was made its limits, which its making may have gone beyond for a moment.

        Raises:
            DetachedError: they are too low for what is in it.
        """
        for number, filesystem in self._records.filesystems.items():
            if _is_in_memory(filesystem):
                set_limits(filesystem, self._made[number].top)

    def source_of(self, mount: Mount) -> NewFilesystemSource:
        """Return what a mount of one of them is cloned from."""
        return NewFilesystemSource(mount, self._made[mount.filesystem])

    def _mount(self, filesystem: Filesystem, devices: list[Found]) -> tuple[Fd, bool]:
        """Return a tree fd of a filesystem, and whether the layers of an overlay are the same."""
        assert filesystem.superblock is not None  # check_filesystems
        name = filesystem.superblock.fs_type
        comes_back = by_name(name).comes_back
        if bool(filesystem.fresh) != (comes_back in (LAYERED, FRESH, KEYED)):
            raise DetachedError(
                f"filesystem {filesystem.id} does not come back as others of its type"
                f" {quote(name)} do: are the images damaged?"
            )
        if comes_back == IN_MEMORY:
            return make_memory(filesystem), True
        if comes_back == LAYERED:
            return mount_layers(filesystem, self._same_boot)
        if comes_back in (FRESH, KEYED):
            return mount_pseudo(filesystem), True
        return remount(filesystem, devices), True


def _is_in_memory(filesystem: Filesystem) -> bool:
    assert filesystem.superblock is not None  # check_filesystems
    return by_name(filesystem.superblock.fs_type).comes_back == IN_MEMORY


def _attach(tree: int) -> Fd:
    """Attach a new mount here, where it can be looked at.

    Returns:
        What its mounts are cloned from. From Linux 6.15 on it is not attached: the
        clones of such a mount are of no namespace in particular, as what fsmount(2) gives. Those
        of an attached one are of this namespace, which will be gone, and with it the last chance
        to look at an anonymous mount. Before, only an attached mount is cloned.
    """
    try:
        top = kernel.clone_mount(tree)
    except OSError:
        top = Fd(os.dup(tree))
    new_mounts.attach_at_root(tree)
    return top


def _directories(records: Records, number: int) -> list[bytes]:
    """Return the directories that have to be in a filesystem.

    They are the roots of mounts, and those in which sockets are to be bound.
    """
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
