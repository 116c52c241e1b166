# SPDX-License-Identifier: GPL-2.0-only
"""Files that two superblocks show: that of a detached mount, and one made for a trial.

A filesystem that comes back as a new superblock is mounted so at dump already, for a trial.
Device numbers tell nothing then, and inode numbers may not either.
"""

from __future__ import annotations

import os
import stat

from criu_detached import kernel, mountinfo, paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.kernel import FileFacts
    from criu_detached.mountinfo import MountInfo

# linux/fs.h: flags of a superblock that statmount(2) tells, as mount options
_SB_FLAGS = {0x1: b"ro", 0x10: b"sync", 0x80: b"dirsync", 1 << 25: b"lazytime"}


class Twins:
    """Tells whether a file of the trial mount is the one of a detached mount."""

    def facts(self, root: int, path: bytes, fd: int, facts: FileFacts) -> FileFacts:
        """Facts that the file has where the trial mount shows it.

        Args:
            root: the mount's root, as the trial mount shows it.
            path: of the file beneath that root.
            fd: the file on the detached mount.
            facts: of it.

        Returns:
            Other facts than those of the path, where another file is there.

        Raises:
            OSError: there is none.
        """
        twin = paths.open_at(root, path)
        try:
            found = kernel.fstat(twin)
            alike = (found.mode & ~0o7777, found.rdev) == (facts.mode & ~0o7777, facts.rdev)
            return found if alike and self.is_one(fd, facts, twin, found, path) else facts
        finally:
            os.close(twin)

    def is_one(self, fd: int, facts: FileFacts, twin: int, found: FileFacts, path: bytes) -> bool:
        """Tell whether two files of one kind, at one path, are the same file."""
        raise NotImplementedError


def attach_for_trial(tree: int) -> MountInfo:
    """Attach a mount in a private namespace; say how that shows it."""
    root = os.open("/", kernel.O_PATH)
    try:
        kernel.attach(tree, root)
    finally:
        os.close(root)
    mnt_id = kernel.fstat(tree).mnt_id
    (info,) = (info for info in mountinfo.read_mountinfo() if info.mnt_id == mnt_id)
    return info


def superblock_flags(flags: int) -> list[bytes]:
    """The options of a superblock that are of no filesystem in particular."""
    return [option for flag, option in _SB_FLAGS.items() if flags & flag]


def climb(directory: int) -> int:
    """An O_PATH fd of the root of a directory's mount, the caller's; the directory is closed.

    The kernel does not go above a detached mount's root (follow_dotdot, fs/namei.c), unless the
    mount is in an anonymous tree or locked to the one that it was on.

    Raises:
        OSError: the directory is not beneath that root.
    """
    here = kernel.fstat(directory)
    while True:
        try:
            above = os.open(b"..", kernel.O_PATH | os.O_DIRECTORY, dir_fd=directory)
        except OSError:
            os.close(directory)
            raise
        found = kernel.fstat(above)
        if found.ino == here.ino or found.mnt_id != here.mnt_id:
            os.close(above)
            return directory
        os.close(directory)
        directory, here = above, found


def names_in(directory: int) -> list[bytes]:
    """What is in a directory of which there is an O_PATH fd; its access time stays."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOATIME
    fd = os.open(b".", flags, dir_fd=directory)
    try:
        return sorted(map(os.fsencode, os.listdir(fd)))
    finally:
        os.close(fd)


def is_directory(fd: int) -> bool:
    """Tell whether an open file is one that still has a name."""
    facts = kernel.fstat(fd)
    return stat.S_ISDIR(facts.mode) and not os.readlink(b"/proc/self/fd/%d" % fd).endswith(
        paths.DELETED
    )
