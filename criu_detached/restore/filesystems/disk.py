# SPDX-License-Identifier: GPL-2.0-only
"""Filesystems on block devices, at restore: they are remounted."""

from __future__ import annotations

import os

from criu_detached import kernel
from criu_detached.criu import log
from criu_detached.errors import DetachedError, quote
from criu_detached.filesystems.devices import is_claimed, needs_device
from criu_detached.filesystems.options import (
    NAME_DEVICES,
    NO_OPTIONS,
    NOT_SEEN,
    needed_options,
    read_options,
    strip_value,
)
from criu_detached.kernel import new_mounts
from criu_detached.kernel.mountinfo import info_of
from criu_detached.restore.filesystems.devices import Found, find_device

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.images.records import Filesystem
    from criu_detached.kernel.fds import Fd


def find_devices(filesystem: Filesystem) -> list[Found]:
    """Find what a filesystem lies on, opened; the caller closes it.

    Not in the mount namespace that it is mounted in, which will be gone: the backing file of
    a loop device would be on a detached mount then.

    Raises:
        DetachedError: it is not there, or the record is none that a dump writes.
    """
    _check(filesystem)
    found: list[Found] = []
    try:
        for device in filesystem.devices:
            found += [find_device(device)]
        for one in found:
            one.claimed = is_claimed(one.path)
    except DetachedError:
        for one in found:
            one.close()
        raise
    return found


def remount(filesystem: Filesystem, found: list[Found]) -> Fd:
    """Mount a filesystem as it was.

    Args:
        filesystem: its record, checked.
        found: its devices.

    Returns:
        A tree fd of the mount.

    Raises:
        DetachedError: it cannot be mounted.
    """
    if not found or filesystem.superblock is None:
        raise _damaged(filesystem)
    fs_type = filesystem.superblock.fs_type
    options = filesystem.options + needed_options(fs_type, [one.path for one in found[1:]])
    if fs_type == b"btrfs" and found[0].claimed and b"rw" in options:
        # Asked to be writable, it would make a read-only one so (btrfs_reconfigure_for_mount).
        options[options.index(b"rw")] = b"ro"
    try:
        return new_mounts.new_mount(fs_type, found[0].path, options)
    except OSError as error:
        in_use = ": it is mounted in another way, or in use; free it" if found[0].claimed else ""
        raise DetachedError(
            f"can't mount {_named(filesystem, found)} again ({error}){in_use}"
        ) from error


def _named(filesystem: Filesystem, found: list[Found]) -> str:
    assert filesystem.superblock is not None
    return f"{quote(filesystem.superblock.fs_type)} on {quote(found[0].path)}"


def _check(filesystem: Filesystem) -> None:
    """Refuse a record that no dump writes: it might mount anything."""
    superblock = filesystem.superblock
    names = {strip_value(option) for option in filesystem.options}
    if (
        superblock is None
        or not filesystem.devices
        or not needs_device(superblock.fs_type)
        or names & (NAME_DEVICES | NO_OPTIONS | {b""})
        or any(b"\0" in option for option in filesystem.options)
    ):
        raise _damaged(filesystem)


def _damaged(filesystem: Filesystem) -> DetachedError:
    return DetachedError(
        f"filesystem {filesystem.id} lies on no block device, or has options that no dump writes:"
        " are the images damaged?"
    )


def check_mounted(filesystem: Filesystem, tree: int, found: list[Found]) -> None:
    """Look at what was mounted: of a living filesystem the kernel gives that one.

    Args:
        filesystem: its record.
        tree: its mount, attached in this mount namespace.
        found: its devices.

    Raises:
        DetachedError: it is mounted elsewhere too, and has other options by now.
    """
    what, shared = _named(filesystem, found), found[0].claimed
    info = info_of(kernel.fstat(tree).mnt_id)
    # Where a superblock has a number of its own, what was found tells enough.
    if os.major(info.dev) and info.dev != kernel.fstat(found[0].fd).rdev:
        raise DetachedError(f"{what} is not what was mounted")
    wanted, have = set(filesystem.options), set(read_options(info))
    lost, new = sorted(wanted - have), sorted(have - wanted)
    if not lost and not new:
        log.info(f"{what} is {'shared with another mount' if shared else 'mounted again'}")
        return
    change = (
        f"{what} has {quote(b','.join(new)) or 'no option'}, where it had"
        f" {quote(b','.join(lost)) or 'none'}"
    )
    if shared and not NOT_SEEN.issuperset(strip_value(option) for option in lost + new):
        raise DetachedError(f"{change}: it is mounted elsewhere; unmount it there")
    log.warn(change)
