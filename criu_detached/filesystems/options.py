# SPDX-License-Identifier: GPL-2.0-only
"""Options of a superblock on block devices: which mountinfo shows, and which a mount needs."""

from __future__ import annotations

from criu_detached.filesystems.types import BTRFS, by_name
from criu_detached.kernel import mountinfo
from criu_detached.kernel.mountinfo import MountInfo

# What mountinfo shows among a superblock's options, and are none: a mark that the security
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


def read_options(info: MountInfo) -> list[bytes]:
    """Return the options that a superblock has.

    Args:
        info: what mountinfo says of a mount of it.
    """
    options = [mountinfo.unescape(option) for option in info.super_options]
    return [option for option in options if strip_value(option) not in NO_OPTIONS]


def strip_value(option: bytes) -> bytes:
    """Return an option without its value."""
    return option.partition(b"=")[0]


def needed_options(fs_type: bytes, members: list[bytes]) -> list[bytes]:
    """Return the options that a type needs at each mount.

    For btrfs: roots of mounts are counted from its top, and all its devices are named.

    Args:
        fs_type: its name.
        members: paths of the devices but the first.
    """
    if by_name(fs_type) is not BTRFS:
        return []
    return [b"subvolid=5", *(b"device=" + path for path in members)]
