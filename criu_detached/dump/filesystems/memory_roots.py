# SPDX-License-Identifier: GPL-2.0-only
"""Where the mounts of a filesystem in memory lie in it, and its files on those.

From Linux 7.0 on the kernel tells the root of each mount. Before, it does so of anonymous mounts
alone.
"""

from __future__ import annotations

import os
import stat
from itertools import chain

from criu_detached import kernel, paths
from criu_detached.dump.filesystems.layout import Layout
from criu_detached.dump.observe import trees
from criu_detached.dump.observe.handles import link_on
from criu_detached.dump.observe.processes import files_of, held_files
from criu_detached.dump.open_file import OpenFile
from criu_detached.errors import DetachedError
from criu_detached.kernel import statmount
from criu_detached.kernel.fds import Fd, link_of, reopen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.dump.describe.new_mount import NewMount
    from criu_detached.dump.observe.machine import Machine
    from criu_detached.kernel.statmount import StatMount
    from criu_detached.paths import Name


class Roots:
    """Where the roots of the mounts of one filesystem lie."""

    def __init__(self, machine: Machine) -> None:
        """Lay out nothing yet.

        Args:
            machine: what is around the dump.
        """
        self._machine = machine
        self._layout: Layout | None = None

    def close(self) -> None:
        """Close what is open."""
        if self._layout is not None:
            self._layout.close()

    def root_of(self, new: NewMount) -> tuple[bytes, bool]:
        """The root of a mount, and whether it is deleted.

        Args:
            new: the mount as it was met.

        Raises:
            DetachedError: it is not to be told.
        """
        if new.statmount:
            if self._layout is not None and not self._layout.anchored:
                raise _unknown_layout()
            return new.statmount.root_path, new.statmount.root_deleted
        if self._layout is None:
            self.lay_out(new.file)
        assert self._layout is not None
        root = self._layout.root_of(new.file)
        if root is None:
            raise _unknown_layout()
        held = chain([new.file.fd], held_files(self._machine, new.mnt_id))
        deleted = any(_is_deleted_root(OpenFile.of(fd)) for fd in held)
        return b"/" if root == paths.ROOT else b"/" + root, deleted

    def lay_out(self, file: OpenFile) -> StatMount | None:
        """Lay mounts out whose roots are not told.

        Args:
            file: of the filesystem.

        Returns:
            What one of its mounts tells of it, if there is one that does.
        """
        dev = file.stat.dev
        anchors = _anchors(self._machine, dev)
        told = {anchor.mnt_id for anchor in anchors}
        others = (
            held
            for held in chain([file.fd], files_of(self._machine, dev))
            if kernel.fstat(held).mnt_id not in told
        )
        roots = [(anchor.fd, paths.from_link(anchor.known.mnt_root)) for anchor in anchors]
        self._layout = Layout(others, roots)
        for anchor in anchors:
            anchor.fd.close()
        return anchors[0].known if anchors else None


class _Anchor:
    """A mount of the filesystem whose root the kernel tells."""

    __slots__ = ("fd", "known", "mnt_id")

    def __init__(self, fd: Fd, mnt_id: int, known: StatMount) -> None:
        self.fd = fd  # on a mount with the root that is told, and nothing above or below
        self.mnt_id = mnt_id  # of the mount that a process holds
        self.known = known


def _anchors(machine: Machine, dev: int) -> list[_Anchor]:
    """Find the mounts of a filesystem that some process holds, each by one file.

    By a directory where there is one, so a mount may come twice.
    """
    found = []
    seen: dict[int, bool] = {}  # mounts, and whether a directory was among the files
    for fd in files_of(machine, dev):
        found_stat = kernel.fstat(fd)
        mnt_id, directory = found_stat.mnt_id, stat.S_ISDIR(found_stat.mode)
        if seen.get(mnt_id, -1) >= directory:
            continue
        seen[mnt_id] = directory
        anchor = _anchor(fd, mnt_id)
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
            return _Anchor(reopen(fd, kernel.O_PATH), mnt_id, known)
    except OSError:
        pass  # before Linux 7.0, and an anonymous mount
    try:
        seen = trees.view(fd)
        return _Anchor(Fd(trees.clone(fd)), mnt_id, seen[0]) if seen else None
    except OSError:
        return None  # the file is deleted


def locate(file: OpenFile) -> Name:
    """Read a file's link: one that ends in " (deleted)" may be the name of a file that is not.

    That is so if the file's handle leads to the same name, for it prefers those that are there.

    Args:
        file: with its path from its mount's root.
    """
    found = file.readings
    if len(found) == 1 or file.is_directory:  # of a deleted directory nlink is zero
        return found[0]
    # Not the link that is given: in an anonymous tree it starts elsewhere.
    return found[0] if _link_by_handle(file) == link_of(file.fd) else found[1]


def _is_deleted_root(file: OpenFile) -> bool:
    """Tell whether an open file is the root of its mount, and deleted."""
    name = locate(file)
    return name.path == paths.ROOT and name.deleted


def _link_by_handle(file: OpenFile) -> bytes:
    """The link of a file as its handle leads to it; empty: there is no such way."""
    if file.handle is None or not stat.S_ISREG(file.stat.mode):
        return b""
    try:
        with reopen(file.fd, os.O_RDONLY) as mount:
            return link_on(mount, file.handle)
    except OSError:
        return b""


def _unknown_layout() -> DetachedError:
    return DetachedError(
        "its filesystem is in memory and has several detached mounts; how they lie in each other,"
        " Linux 7.0 or newer tells"
    )
