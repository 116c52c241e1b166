# SPDX-License-Identifier: GPL-2.0-only
"""A detached mount that an attached one shows: its files are compared with those of the source."""

from __future__ import annotations

import errno
import os
import stat

from criu_detached import kernel, paths
from criu_detached.dump.describe import roots
from criu_detached.dump.describe.mount import DetachedMount
from criu_detached.dump.observe.handles import open_on
from criu_detached.dump.open_file import OpenFile
from criu_detached.errors import DetachedError, quote, why
from criu_detached.kernel.fds import Fd, link_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from criu_detached.dump.describe.new_mount import NewMount
    from criu_detached.dump.describe.sources import Source
    from criu_detached.images.records import File, Mount
    from criu_detached.kernel import FileStat
    from criu_detached.paths import Name


class SourceMount(DetachedMount):
    """A detached mount, and how its source shows it."""

    shows_files = True

    def __init__(self, new: NewMount, record: Mount, source: Source, root: Fd | None) -> None:
        """Take what was found.

        Args:
            new: the mount as it was met.
            record: its record.
            source: that shows it; it stays the caller's.
            root: O_PATH fd of the mount's root in the source; None: it is deleted.
        """
        super().__init__(new, record, source.read_only)
        # Both stay open for the checks of the files on the mount.
        self.root = root
        self.source = Fd(os.dup(source.fd))
        self.maps_known = new.statmount is not None  # the kernel told the id-map, or that none is
        self._same_file = source.same_file

    # --- Files on it ---------------------------------------------------------------------

    def locate(self, file: OpenFile) -> Name:
        """Say where a file is: the restore will open the path beneath the source.

        Args:
            file: with its path from the mount's root.

        Raises:
            DetachedError: another file is there, and the link does not say that it is deleted;
                or it has another owner there.
        """
        refusal = "its mount's root is deleted, but it is not: was it moved away?"
        for name in file.readings:
            if name.deleted:
                return name
            if self.root is None:
                continue
            refusal = self._refusal_at(self.root, name.path, file)
            if not refusal:
                self._check_owner(self.root, name.path, file)
                return name
        raise DetachedError(refusal)

    def _refusal_at(self, root: Fd, path: bytes, file: OpenFile) -> str:
        """Say why a file is not to be found at a path; empty: it is there."""
        where = quote(paths.join(self.bind_source.mountpoint, paths.join(self._root_path, path)))
        try:
            if self._same_file.is_at(file, root, path):
                return ""
        except OSError as error:
            if error.errno == errno.EXDEV:
                return f"another mount covers {where}, its path in the bind source: unmount that"
            return f"{where}, its path in the bind source, cannot be reached: {why(error)}"
        return f"{where}, its path in the bind source, is another file: was it renamed or replaced?"

    @property
    def _root_path(self) -> bytes:
        """Path of the mount's root beneath that of the source."""
        return self.bind_source.path

    def is_hard_link(self, file: OpenFile, known: File) -> bool:
        """Look at the other path; without handles that tells only where numbers repeat."""
        if file.handle is None and self.has_sure_numbers:
            return super().is_hard_link(file, known)
        if known.handle is not None:
            return file.handle == known.handle
        if self.root is None:
            return False
        try:
            with paths.open_at(self.root, known.path) as other:
                return file.is_same(OpenFile.of(other))
        except OSError:
            return False

    def _check_owner(self, root: Fd, path: bytes, file: OpenFile) -> None:
        """Refuse a file that has another owner in the source.

        Where the kernel does not tell a mount's id-map, that does.
        """
        if self.maps_known:
            return
        try:
            found = paths.stat_at(root, path)
        except OSError as error:
            raise DetachedError(
                "somebody renames or deletes it while it is dumped: have that end, and dump again"
            ) from error
        if (found.uid, found.gid) != (file.stat.uid, file.stat.gid):
            raise DetachedError(
                "its mount is id-mapped, and the kernel does not tell how: Linux 7.0 or newer does"
                " of most mounts"
            )

    def check_socket_directory(self, path: bytes) -> None:
        """Look for the directory in the source."""
        if self.root is None:
            return
        try:
            fd, _ = kernel.open_beneath(self.root, path, kernel.O_PATH | os.O_DIRECTORY)
        except OSError as error:
            raise DetachedError(
                f"the bind source does not show its directory {quote(path)}: {why(error)}"
            ) from error
        fd.close()

    # --- Deleted files, in the source ----------------------------------------------------

    def nearest_directory(self, path: bytes) -> tuple[FileStat, bytes] | None:
        """Look beneath the mount's root, or if that is deleted beneath the source's."""
        base, above = self.root, self._root_path
        if base is None:
            base, above, path = self.source, paths.ROOT, paths.join(self._root_path, path)
        path, found = _nearest_directory(base, path)
        return found, paths.join(self.bind_source.mountpoint, paths.join(above, path))

    def names_in_source(self, file: OpenFile) -> Iterator[bytes]:
        """Ask the file's handle for a name, then search."""
        inside = self._name_by_handle(file)
        if inside is not None and roots.is_at(self.source, inside, file):
            yield inside
        yield from roots.names_of_inode(self.source, file)

    def _name_by_handle(self, file: OpenFile) -> bytes | None:
        if file.handle is None:
            return None
        try:
            with open_on(self.source, file.handle) as there:
                return paths.below(link_of(there), link_of(self.source))
        except OSError:
            return None

    def open_in_source(self, path: bytes) -> Fd:
        """Open what a name leads to."""
        return paths.open_at(self.source, path)

    # --- The mount itself ----------------------------------------------------------------

    @property
    def plain_root(self) -> Fd | None:
        """The root, where device and inode tell its files."""
        return self.root if self._same_file.by_number and not self.fs_type.server else None

    @property
    def in_namespace(self) -> bool:
        """Whether the source is in a dumped mount namespace."""
        return bool(self.bind_source.in_namespace)

    def open_stand_in(self) -> Fd | None:
        """Open the source's root, if it is in a dumped mount namespace."""
        return Fd(os.dup(self.source)) if self.in_namespace else None

    def confine(self) -> None:
        """Leave what comes from the tasks' own mount namespace as it is."""
        if not self.in_namespace:
            super().confine()

    def way_back(self) -> str:
        """Name the source."""
        source = self.bind_source
        where = " in the dumped namespace" if source.in_namespace else ""
        return f"is shown by mount {source.mnt_id} at {quote(source.mountpoint)}{where}"


def _nearest_directory(base: int, path: bytes) -> tuple[bytes, FileStat]:
    """The directory that a path beneath a root was in, or the last of those above that is left."""
    while path != paths.ROOT:
        path = paths.split(path)[0]
        try:
            found = paths.stat_at(base, path)
        except OSError:
            continue  # it is deleted too
        if stat.S_ISDIR(found.mode):
            return path, found
    return path, kernel.fstat(base)
