# SPDX-License-Identifier: GPL-2.0-only
"""Filesystems of the kernel's own, at restore: they are mounted from nothing."""

from __future__ import annotations

from criu_detached.errors import DetachedError, quote
from criu_detached.kernel import mountinfo, new_mounts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.images.records import Filesystem
    from criu_detached.kernel.fds import Fd

# What mountinfo shows among the options of cgroup2 besides its own.
_NOT_OF_CGROUP2 = {b"ro", b"rw", b"seclabel"}


def mount_pseudo(filesystem: Filesystem) -> Fd:
    """Mount a filesystem of the kernel's own.

    Args:
        filesystem: its record.

    Returns:
        A tree fd of the mount.

    Raises:
        DetachedError: it cannot be mounted.
    """
    assert filesystem.superblock is not None  # checks.check_filesystems
    fs_type = filesystem.superblock.fs_type
    try:
        return new_mounts.new_mount(fs_type, filesystem.source, _options_here(filesystem))
    except OSError as error:
        raise DetachedError(f"can't mount {quote(fs_type)} again: {error}") from error


def _options_here(filesystem: Filesystem) -> list[bytes]:
    """Return the options that a filesystem is to have at restore.

    Those of cgroup2 are the machine's: mounting must not change what others have set.
    """
    superblock = filesystem.superblock
    if superblock and superblock.fs_type == b"cgroup2":
        for info in mountinfo.read_mountinfo():
            if info.fs_type == b"cgroup2":
                return [option for option in info.super_options if option not in _NOT_OF_CGROUP2]
    return filesystem.options
