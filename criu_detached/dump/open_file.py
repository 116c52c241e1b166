# SPDX-License-Identifier: GPL-2.0-only
"""An open file: what a dump is asked about, and what it finds in the processes."""

from __future__ import annotations

import errno
import stat

from criu_detached import kernel, paths
from criu_detached.filesystems.types import WRAPPING_INODES, by_magic
from criu_detached.images.records import Handle
from criu_detached.kernel.fds import link_of, reopen
from criu_detached.once import once

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.filesystems.types import FilesystemType
    from criu_detached.kernel import FileStat, StatFs


class Owner:
    """A process that has a file, and by what: "fd/3", "cwd" or another link of procfs."""

    __slots__ = ("link", "pid")

    def __init__(self, pid: int, link: str) -> None:
        """Name both.

        Args:
            pid: of the process.
            link: below its directory in procfs.
        """
        self.pid = pid
        self.link = link

    @property
    def fd(self) -> int | None:
        """The number of its fd; None: it has the file by something else."""
        directory, _, number = self.link.partition("/")
        return int(number) if directory == "fd" else None

    @property
    def path(self) -> str:
        """What leads to the file."""
        return f"/proc/{self.pid}/{self.link}"


class OpenFile:
    """A file that is open in this process: its fd, and what the kernel tells of it.

    What takes a call is asked for once, when it is needed; the fd has to be open until then.
    """

    def __init__(
        self, fd: int, stat: FileStat, link: bytes | None = None, owner: Owner | None = None
    ) -> None:
        """Take what is known.

        Args:
            fd: the file, O_PATH will do; it stays the caller's.
            stat: of the file.
            link: its path, as its mount shows it; None: what /proc/self/fd says.
            owner: who has it, where that is known.
        """
        self.fd = fd
        self.stat = stat
        self.owner = owner
        if link is not None:
            self.link = link

    @classmethod
    def of(cls, fd: int, owner: Owner | None = None) -> OpenFile:
        """Ask for what there is to know of an fd, which stays the caller's; raises OSError."""
        return cls(fd, kernel.fstat(fd), owner=owner)

    def seen_as(self, link: bytes) -> OpenFile:
        """Return the same file with its path from another root.

        Args:
            link: that path, as a link would show it.
        """
        return OpenFile(self.fd, self.stat, link, self.owner)

    @once
    def link(self) -> bytes:
        """Its /proc/self/fd link; raises OSError."""
        return link_of(self.fd)

    @once
    def readings(self) -> list[paths.Name]:
        """What its link may mean: see paths.readings."""
        return paths.readings(self.link, self.stat)

    @once
    def statfs(self) -> StatFs:
        """Of its filesystem: fstatfs(2); raises OSError."""
        return kernel.fstatfs(self.fd)

    @once
    def fs_type(self) -> FilesystemType:
        """Type of its filesystem; raises OSError."""
        return by_magic(self.statfs.magic)

    @once
    def handle(self) -> Handle | None:
        """Its file handle, where its filesystem has such."""
        return handle_of(self.fd)

    @property
    def has_sure_number(self) -> bool:
        """Whether no other file of its filesystem can have its inode number."""
        return not self.fs_type.has(WRAPPING_INODES)

    def is_same(self, other: OpenFile) -> bool:
        """Tell whether another file of the same filesystem is the same inode; raises OSError."""
        if self.handle is not None:
            return self.handle == other.handle
        return kernel.is_same_inode(self.fd, other.fd)

    @once
    def identity(self) -> Identity:
        """What tells it from another file with its number; raises OSError."""
        return Identity(self)

    @property
    def is_directory(self) -> bool:
        """Whether it is one, deleted or not."""
        return stat.S_ISDIR(self.stat.mode)

    @property
    def is_marked_deleted(self) -> bool:
        """Whether its link ends as that of a deleted file; it may be named so."""
        return self.link.endswith(paths.DELETED)


class Identity:
    """An inode: by its file handle, which has a generation, or held open where it has none."""

    __slots__ = ("_fd", "_handle")

    def __init__(self, file: OpenFile) -> None:
        """Take note of a file.

        Args:
            file: the file.

        Raises:
            OSError: it has no handle, and cannot be held.
        """
        self._handle = _handle(file.fd)
        self._fd = reopen(file.fd, kernel.O_PATH) if self._handle is None else None

    def is_of(self, file: OpenFile) -> bool:
        """Tell whether a file of the same filesystem is that very inode.

        Args:
            file: the file.

        Raises:
            OSError: it cannot be told.
        """
        if self._fd is None:
            return _handle(file.fd) == self._handle
        return kernel.is_same_inode(self._fd, file.fd)

    def close(self) -> None:
        """Let go of the inode."""
        if self._fd is not None:
            self._fd.close()


def handle_of(fd: int) -> Handle | None:
    """Return the file handle of an open file, where its filesystem has such."""
    found = _handle(fd)
    return Handle(type=found[0], bytes=found[1]) if found else None


def _handle(fd: int) -> tuple[int, bytes] | None:
    """The same, as the kernel gives it: a record takes more time than the call."""
    try:
        return kernel.name_to_handle(fd)
    except OSError:
        return None


def has_handles(fd: int) -> bool:
    """Tell whether the filesystem of an open file has file handles."""
    try:
        kernel.name_to_handle(fd)
    except OSError as error:
        return error.errno != errno.EOPNOTSUPP
    return True
