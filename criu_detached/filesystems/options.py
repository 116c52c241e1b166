# SPDX-License-Identifier: GPL-2.0-only
"""Options of a superblock on block devices, as mountinfo shows them and mount(2) takes them."""

from __future__ import annotations

from criu_detached.kernel import mountinfo
from criu_detached.kernel.mountinfo import MountInfo

# What mountinfo shows among a superblock's options, and is not one: a mark that the security
# module sets, and the subvolume of btrfs that one mount shows.
NO_OPTIONS = {b"seclabel", b"subvol", b"subvolid"}

# Options that steer how a filesystem works, and not what is seen in it.
NOT_SEEN = {
    b"attr2",
    b"autodefrag",
    b"commit",
    b"compress",
    b"compress-force",
    b"delalloc",
    b"discard",
    b"ikeep",
    b"inode64",
    b"largeio",
    b"logbsize",
    b"logbufs",
    b"nodelalloc",
    b"nodiscard",
    b"noikeep",
    b"nolargeio",
    b"nossd",
    b"space_cache",
    b"ssd",
    b"ssd_spread",
    b"stripe",
    b"sunit",
    b"swidth",
    b"thread_pool",
    b"threads",
}

# Options that name another device.
NAME_DEVICES = {b"device", b"journal_dev", b"journal_path", b"logdev", b"rtdev", b"source"}


def options_of(info: MountInfo) -> list[bytes]:
    """The options that a superblock has, as mountinfo shows them.

    Args:
        info: a mount of it.
    """
    options = [mountinfo.unescape(option) for option in info.super_options]
    return [option for option in options if name_of(option) not in NO_OPTIONS]


def name_of(option: bytes) -> bytes:
    """An option without its value."""
    return option.partition(b"=")[0]


def options_of_type(fs_type: bytes, others: list[bytes]) -> list[bytes]:
    """Options that a type needs: btrfs has roots of mounts counted from its top, and members.

    Args:
        fs_type: its name.
        others: paths of the devices but the first.
    """
    if fs_type != b"btrfs":
        return []
    return [b"subvolid=5", *(b"device=" + path for path in others)]
