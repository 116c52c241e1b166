# SPDX-License-Identifier: GPL-2.0-only
"""What the kernel tells of a filesystem in memory, and what has to be found out.

From Linux 7.0 on it tells all: options, and the root of each mount. Before, it does so of
anonymous mounts alone.
"""

from __future__ import annotations

import os
import stat
from itertools import chain

from criu_detached import kernel, paths
from criu_detached.criu import log
from criu_detached.dump.filesystems.layout import Layout
from criu_detached.dump.observe import trees
from criu_detached.dump.observe.handles import link_on
from criu_detached.dump.observe.processes import files_of, held_files
from criu_detached.dump.open_file import handle_of
from criu_detached.errors import DetachedError
from criu_detached.kernel import statmount
from criu_detached.kernel.fds import reopen
from criu_detached.paths import Name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from criu_detached.dump.observe.classify import Kind
    from criu_detached.kernel import FileStat
    from criu_detached.kernel.statmount import StatMount


# What the kernel shows with the options, and mount(2) does not take or the record says otherwise.
_NOT_OPTIONS = {b"rw", b"ro", b"seclabel"}


class Roots:
    """Where the roots of the mounts of one filesystem lie."""

    def __init__(self) -> None:
        self._layout: Layout | None = None

    def close(self) -> None:
        """Close what is open."""
        if self._layout is not None:
            self._layout.close()

    def root_of(self, fd: int, facts: FileStat, kind: Kind) -> tuple[bytes, bool]:
        """The root of a mount, and whether it is deleted.

        Args:
            fd: a file on the mount.
            facts: of the file.
            kind: what the classifier said.

        Raises:
            DetachedError: it is not to be told.
        """
        if kind.statmount:
            if self._layout is not None and not self._layout.anchored:
                raise _unknown_layout()
            return kind.statmount.root_path, kind.statmount.root_deleted
        if self._layout is None:
            self.lay_out(fd)
        assert self._layout is not None
        root = self._layout.root_of(fd, facts.mnt_id)
        if root is None:
            raise _unknown_layout()
        deleted = any(map(_is_deleted_root, chain([fd], held_files(facts.mnt_id))))
        return b"/" if root == paths.ROOT else b"/" + root, deleted

    def lay_out(self, fd: int) -> StatMount | None:
        """Lay mounts out whose roots are not told.

        Args:
            fd: a file of the filesystem.

        Returns:
            What one of its mounts tells of it, if there is one that does.
        """
        dev = kernel.fstat(fd).dev
        anchors = _anchors(dev)
        told = {anchor.mnt_id for anchor in anchors}
        others = (
            held for held in chain([fd], files_of(dev)) if kernel.fstat(held).mnt_id not in told
        )
        roots = [(anchor.fd, paths.from_link(anchor.known.mnt_root)) for anchor in anchors]
        self._layout = Layout(others, roots)
        for anchor in anchors:
            os.close(anchor.fd)
        return anchors[0].known if anchors else None


class _Anchor:
    """A mount of the filesystem whose root the kernel tells."""

    __slots__ = ("fd", "known", "mnt_id")

    def __init__(self, fd: int, mnt_id: int, known: StatMount) -> None:
        self.fd = fd  # on a mount with the root that is told, and nothing above or below
        self.mnt_id = mnt_id  # of the mount that a process holds
        self.known = known


def _anchors(dev: int) -> list[_Anchor]:
    """Find the mounts of a filesystem that some process holds, each by one file.

    By a directory where there is one, so a mount may come twice.
    """
    found = []
    seen: dict[int, bool] = {}  # mounts, and whether a directory was among the files
    for fd in files_of(dev):
        facts = kernel.fstat(fd)
        directory = stat.S_ISDIR(facts.mode)
        if seen.get(facts.mnt_id, -1) >= directory:
            continue
        seen[facts.mnt_id] = directory
        anchor = _anchor(fd, facts.mnt_id)
        if anchor is not None:
            found.append(anchor)
    return found


def _anchor(fd: int, mnt_id: int) -> _Anchor | None:
    """A mount by a file on it; None: its root is deleted, or not told."""
    try:
        known = statmount.by_fd(fd, trees.WANTED | statmount.STATMOUNT_MNT_NS_ID)
        if not known.mask & statmount.STATMOUNT_MNT_NS_ID:
            if known.root_deleted:
                return None
            return _Anchor(os.open(b"/proc/self/fd/%d" % fd, kernel.O_PATH), mnt_id, known)
    except OSError:
        pass  # before Linux 7.0, and an anonymous mount
    try:
        seen = trees.view(fd)
        return _Anchor(trees.clone(fd), mnt_id, seen[0]) if seen else None
    except OSError:
        return None  # the file is deleted


def options_of(fd: int, known: StatMount | None, fs_type: bytes) -> list[bytes]:
    """Options of the superblock; where they are not told, there is a warning.

    Args:
        fd: a file of the filesystem.
        known: what statmount(2) says of one of its mounts, where the kernel can.
        fs_type: its type.
    """
    if known:
        shown = known.mnt_opts
        return [option for option in shown if option.partition(b"=")[0] not in _NOT_OPTIONS]
    if fs_type != b"tmpfs":
        return []
    log.warn(
        "this kernel does not tell the options of a filesystem in memory, as Linux 7.0 or newer"
        " does: its size and number of inodes are kept, and others (noswap, mpol, ...) are lost"
    )
    fs = os.fstatvfs(fd)
    limits = [b"size=%d" % (fs.f_blocks * fs.f_frsize), b"nr_inodes=%d" % fs.f_files]
    return limits + _huge(chain([fd], files_of(kernel.fstat(fd).dev)))


def _huge(files: Iterator[int]) -> list[bytes]:
    """The option of huge pages, as the size of blocks shows it (shmem_getattr, mm/shmem.c).

    With huge=always every file has large blocks, with huge=within_size those that fill one.
    """
    found: set[bytes] = set()
    for fd in files:
        facts = os.fstat(fd)
        if stat.S_ISREG(facts.st_mode) and facts.st_blksize > os.sysconf("SC_PAGESIZE"):
            small = facts.st_size < facts.st_blksize
            found.add(b"huge=always" if small else b"huge=within_size")
    return sorted(found)[:1]


def name_of(fd: int, link: bytes, facts: FileStat) -> Name:
    """Read a file's link: one that ends in " (deleted)" may be the name of a file that is not.

    That is so if the file's handle leads to the same name, for it prefers those that are there.
    """
    found = paths.readings(link, facts)
    if len(found) == 1 or stat.S_ISDIR(facts.mode):  # of a deleted directory nlink is zero
        return found[0]
    # Not the link that is given: in an anonymous tree it starts elsewhere.
    shown = os.readlink(b"/proc/self/fd/%d" % fd)
    return found[0] if _link_by_handle(fd, facts) == shown else found[1]


def _is_deleted_root(fd: int) -> bool:
    """Tell whether an open file is the root of its mount, and deleted."""
    name = name_of(fd, os.readlink(b"/proc/self/fd/%d" % fd), kernel.fstat(fd))
    return name.path == paths.ROOT and name.deleted


def _link_by_handle(fd: int, facts: FileStat) -> bytes:
    """The link of a file as its handle leads to it; empty: there is no such way."""
    handle = handle_of(fd)
    if handle is None or not stat.S_ISREG(facts.mode):
        return b""
    try:
        with reopen(fd, os.O_RDONLY) as mount:
            return link_on(mount, handle)
    except OSError:
        return b""


def _unknown_layout() -> DetachedError:
    return DetachedError(
        "its filesystem is in memory and has several detached mounts; how they lie in each other,"
        " Linux 7.0 or newer tells"
    )
