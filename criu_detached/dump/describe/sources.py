# SPDX-License-Identifier: GPL-2.0-only
"""Bind sources: attached mounts that show the superblock of a detached mount."""

from __future__ import annotations

import os
import stat

from criu_detached import kernel, paths
from criu_detached.dump.describe.roots import SameFile
from criu_detached.dump.observe.attached import open_mount
from criu_detached.filesystems.types import MANY_DEVICES, by_magic
from criu_detached.images.records import BIND_SOURCE
from criu_detached.kernel import mountinfo, namespaces, statmount
from criu_detached.kernel.fds import Fd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from criu_detached.criu.criu import Criu
    from criu_detached.kernel.mountinfo import MountInfo

    Found = tuple[int, MountInfo, bool]  # a process that sees it, the mount, is it dumped?

_BY_NUMBER = SameFile()


class Source:
    """An attached mount, held open: its root can be looked into, and cloned."""

    # What the record of a mount says of where it comes from.
    origin = BIND_SOURCE
    filesystem = 0  # its record; 0: it has none
    tells_root = True  # the file handle of a root leads to it at the restore too
    is_proven = False  # a mount was made of it just now, as the restore will make it

    same_file = _BY_NUMBER

    def __init__(self, info: MountInfo, fd: Fd, pid: int = 0, in_namespace: bool = False) -> None:
        """Take an open mount.

        Args:
            info: what mountinfo says of it.
            fd: of its root, O_PATH; closed with the source.
            pid: a process in its namespace; 0: this one.
            in_namespace: that namespace is dumped.
        """
        self.info = info
        self.fd = fd
        self.pid = pid
        self.in_namespace = in_namespace

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the mount."""
        self.fd.close()

    @property
    def read_only(self) -> bool:
        """Whether the superblock is, not the mount."""
        return b"ro" in self.info.super_options

    def id_maps(self) -> tuple[list[bytes], list[bytes]]:
        """Uid and gid map of the mount, empty where it has none; raises OSError."""
        if not self.pid:
            return statmount.attached_id_maps(self.fd)
        with Fd.open(f"/proc/{self.pid}/ns/mnt", os.O_RDONLY) as space:
            return statmount.attached_id_maps(self.fd, namespaces.mount_ns_id(space))


class Sources:
    """Where sources of detached mounts are looked for."""

    def candidates(
        self, dev: int, fs_type: bytes | None, magic: int, root: bytes | None = None
    ) -> Iterator[Source]:
        """Yield, opened, each mount that may show a superblock; the caller closes it.

        Args:
            dev: device of the superblock, or of a file on it.
            fs_type: its filesystem's name, where known.
            magic: its statfs f_type.
            root: what it has to show, as a path in the filesystem, where known.

        Raises:
            DetachedError: there can be none.
        """
        raise NotImplementedError


class SourceFinder(Sources):
    """Walks the attached mounts that a restore can reach again."""

    def __init__(self, criu: Criu) -> None:
        """Begin; nothing is read yet.

        Args:
            criu: says which mount namespaces are dumped.
        """
        self._criu = criu
        self._mounts: list[Found] | None = None
        self._namespaces: list[list[tuple[int, MountInfo]]] | None = None
        # By device and namespace or not: the one that was yielded last, and so the one that did.
        self._last: dict[tuple[int, bool], Found] = {}

    def candidates(
        self, dev: int, fs_type: bytes | None, magic: int, root: bytes | None = None
    ) -> Iterator[Source]:
        """As of Sources; mounts of dumped namespaces come first: they travel with the images."""
        for found in self._likely_first(dev):
            pid, info, in_namespace = found
            by_type = by_magic(magic).has(MANY_DEVICES) and fs_type in (None, info.fs_type)
            if info.dev != dev and not by_type:
                continue
            if root is not None and paths.below(root, info.root) is None:
                continue
            fd = open_mount(pid, info)
            if fd is None:
                continue
            if kernel.fstatfs(fd).magic == magic:
                self._last[dev, in_namespace] = found
                yield Source(info, fd, pid, in_namespace)
            else:
                fd.close()

    def _likely_first(self, dev: int) -> Iterator[Found]:
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
            fd = open_mount(pid, info) if not pid and info.dev == dev else None
            if fd is not None:
                with Source(info, fd) as source:
                    yield source

    def may_be_known(self, dev: int, ino: int) -> bool:
        """Tell whether a mount that CRIU knows shows an inode, or may do so.

        Args:
            dev: device of the superblock.
            ino: the inode.
        """
        for pid, info, _ in self._all():
            if info.dev != dev or not self._criu.mount_known(info.mnt_id):
                continue
            fd = open_mount(pid, info)
            if fd is None:
                return True
            with fd:
                found = kernel.fstat(fd)
            if stat.S_ISDIR(found.mode) or found.ino == ino:
                return True
        return False

    def dumped_pids(self) -> list[int]:
        """A process of each dumped mount namespace."""
        return [mounts[0][0] for mounts in self._dumped_namespaces()]

    def _all(self) -> list[Found]:
        if self._mounts is None:
            here = [(0, info, False) for info in mountinfo.read_mountinfo()]
            self._mounts = [*self._dumped(), *here]
        return self._mounts

    def _dumped(self) -> Iterator[Found]:
        for mounts in self._dumped_namespaces():
            yield from ((pid, info, True) for pid, info in mounts)

    def _dumped_namespaces(self) -> list[list[tuple[int, MountInfo]]]:
        """The mounts of each dumped namespace. CRIU knows those, and its own."""
        if self._namespaces is None:
            dumped = self._criu.dumps_mount_namespace()
            self._namespaces = list(self._find_namespaces()) if dumped else []
        return self._namespaces

    def _find_namespaces(self) -> Iterator[list[tuple[int, MountInfo]]]:
        own = os.stat("/proc/self/ns/mnt").st_ino
        for inode, pids in mountinfo.namespaces():
            mounts = mountinfo.mounts_of_namespace(pids) if inode != own else []
            if mounts and self._criu.mount_known(mounts[0][1].mnt_id):
                yield mounts
