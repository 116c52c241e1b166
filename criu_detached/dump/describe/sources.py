# SPDX-License-Identifier: GPL-2.0-only
"""Bind sources: attached mounts that show the superblock of a detached mount."""

from __future__ import annotations

import os
import stat

from criu_detached import kernel, paths
from criu_detached.filesystems.types import MANY_DEVICES, by_magic
from criu_detached.kernel import mountinfo
from criu_detached.kernel.mountinfo import MountInfo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from criu_detached.dump.filesystems.same_file import Twins
    from criu_detached.images.records import Filesystem


class Source:
    """An attached mount, held open: its root can be looked into, and cloned."""

    def __init__(
        self,
        info: MountInfo,
        in_namespace: bool,
        fd: int,
        pid: int = 0,
        filesystem: Filesystem | None = None,
        twins: Twins | None = None,
    ) -> None:
        self.info = info
        self.pid = pid  # of a process in its namespace; 0: this one
        self.filesystem = filesystem  # it is not attached, but can be mounted again so
        self.twins = twins  # its superblock is another one that shows the same files
        self.in_namespace = in_namespace
        self.fd = fd

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the mount."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class SourceFinder:
    """Walks the attached mounts that a restore can reach again."""

    def __init__(self, dumps_namespace: bool, mount_known: Callable[[int], int]) -> None:
        """Say where to look.

        Args:
            dumps_namespace: the dump holds mount namespaces (root_ns_mask).
            mount_known: CRIU's lookup_mnt_id, for mounts of dumped namespaces.
        """
        self._dumps_namespace = dumps_namespace
        self._mount_known = mount_known
        self._mounts: list[tuple[int, MountInfo, bool]] | None = None
        self._namespaces: list[list[tuple[int, MountInfo]]] | None = None
        # By device and namespace or not: the one that was yielded last, and so the one that did.
        self._last: dict[tuple[int, bool], tuple[int, MountInfo, bool]] = {}

    def candidates(
        self, dev: int, fs_type: bytes | None, magic: int, root: bytes | None = None
    ) -> Iterator[Source]:
        """Yield, opened, each mount that may show a superblock; the caller closes it.

        Mounts of dumped namespaces come first: they travel with the images.

        Args:
            dev: device of the superblock, or of a file on it.
            fs_type: its filesystem's name, where known.
            magic: its statfs f_type.
            root: what it has to show, as a path in the filesystem, where known.
        """
        for found in self._likely_first(dev):
            pid, info, in_namespace = found
            by_type = by_magic(magic).has(MANY_DEVICES) and fs_type in (None, info.fs_type)
            if info.dev != dev and not by_type:
                continue
            if root is not None and paths.below(root, info.root) is None:
                continue
            fd = open_mount(pid, info)
            if fd >= 0:
                if kernel.fstatfs(fd).magic == magic:
                    self._last[dev, in_namespace] = found
                    yield Source(info, in_namespace, fd, pid)
                else:
                    os.close(fd)

    def _likely_first(self, dev: int) -> Iterator[tuple[int, MountInfo, bool]]:
        """All mounts, those of dumped namespaces first, and of either kind the one that did before.

        A container may have thousands of mounts of one filesystem, and each costs several calls.
        """
        for inside in (True, False):
            last = self._last.get((dev, inside))
            if last is not None:
                yield last
            yield from (found for found in self._all() if found[2] == inside and found is not last)

    def outside(self, dev: int) -> Iterator[Source]:
        """Yield, opened, each mount of a superblock where criu runs; it is closed after.

        Args:
            dev: device of the superblock.
        """
        for pid, info, _ in self._all():
            fd = open_mount(pid, info) if not pid and info.dev == dev else -1
            if fd >= 0:
                with Source(info, False, fd) as source:
                    yield source

    def may_be_known(self, dev: int, ino: int) -> bool:
        """Tell whether a mount that CRIU knows shows an inode, or may do so.

        Args:
            dev: device of the superblock.
            ino: the inode.
        """
        for pid, info, _ in self._all():
            if info.dev != dev or not self._mount_known(info.mnt_id):
                continue
            fd = open_mount(pid, info)
            if fd < 0:
                return True
            found = kernel.fstat(fd)
            os.close(fd)
            if stat.S_ISDIR(found.mode) or found.ino == ino:
                return True
        return False

    def dumped_pids(self) -> list[int]:
        """A process of each dumped mount namespace."""
        return [mounts[0][0] for mounts in self._dumped_namespaces()]

    def _all(self) -> list[tuple[int, MountInfo, bool]]:
        if self._mounts is None:
            here = [(0, info, False) for info in mountinfo.read_mountinfo()]
            self._mounts = [*self._dumped(), *here]
        return self._mounts

    def _dumped(self) -> Iterator[tuple[int, MountInfo, bool]]:
        for mounts in self._dumped_namespaces():
            yield from ((pid, info, True) for pid, info in mounts)

    def _dumped_namespaces(self) -> list[list[tuple[int, MountInfo]]]:
        """The mounts of each dumped namespace. CRIU knows those, and its own."""
        if self._namespaces is None:
            self._namespaces = list(self._find_namespaces()) if self._dumps_namespace else []
        return self._namespaces

    def _find_namespaces(self) -> Iterator[list[tuple[int, MountInfo]]]:
        own = os.stat("/proc/self/ns/mnt").st_ino
        for inode, pids in mountinfo.namespaces():
            mounts = mountinfo.mounts_of_namespace(pids) if inode != own else []
            if mounts and self._mount_known(mounts[0][1].mnt_id):
                yield mounts


def open_mount(pid: int, info: MountInfo) -> int:
    """Open an attached mount's root.

    Args:
        pid: a process that sees it; 0: this one.
        info: what that is shown of it.

    Returns:
        An O_PATH fd, the caller's; -1 when it cannot be reached by its mountpoint.
    """
    try:
        root = os.open(f"/proc/{pid}/root" if pid else "/", kernel.O_PATH)
    except OSError:
        return -1
    try:
        fd = paths.open_mountpoint(root, info.mountpoint)
    except OSError:
        return -1
    finally:
        os.close(root)
    try:
        if kernel.fstat(fd).mnt_id == info.mnt_id:
            return fd
    except OSError:
        pass  # its server is gone
    os.close(fd)  # else another mount covers it
    return -1
