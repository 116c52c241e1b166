# SPDX-License-Identifier: GPL-2.0-only
"""From a mount that was met to a source of it: which attached mount shows its root, and where."""

from __future__ import annotations

import errno
import stat

from criu_detached import kernel, paths
from criu_detached.dump.describe.dry_run import dry_run
from criu_detached.dump.describe.source_mount import SourceMount
from criu_detached.dump.open_file import handle_of
from criu_detached.errors import DetachedError, quote
from criu_detached.filesystems.superblock import superblock_of
from criu_detached.images.records import BindSource

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.dump.describe.new_mount import NewMount
    from criu_detached.dump.describe.sources import Source, Sources
    from criu_detached.images.records import Mount
    from criu_detached.kernel.fds import Fd
    from criu_detached.kernel.statmount import StatMount
    from criu_detached.paths import Name


def describe_mount(
    new: NewMount, sources: Sources, kind: type[SourceMount] = SourceMount
) -> SourceMount:
    """Describe a detached mount by a source of it.

    Args:
        new: the mount as it was met.
        sources: gives the mounts that may show it.
        kind: of the mount that is made.

    Raises:
        DetachedError: no source shows the mount's root, or not as it is there.
    """
    refusal = ""
    for name in new.file.readings:
        mount, refusal = _find_source(new, name, sources, kind)
        if mount is not None:
            return mount
    raise DetachedError(refusal)


def _find_source(
    new: NewMount, name: Name, sources: Sources, kind: type[SourceMount]
) -> tuple[SourceMount | None, str]:
    """Look for a source that fits a reading of the link; else say why there is none."""
    known = new.statmount
    refusal = _no_source(name, known)
    fs_type, wanted = (known.fs_type, known.root_path) if known else (None, None)
    for source in sources.candidates(new.dev, fs_type, new.file.statfs.magic, wanted):
        with source:
            mount, why = _Fit(new, name, source).describe(kind)
            if mount is not None:
                return mount, ""
            refusal = why or refusal
    return None, refusal


class _Fit:
    """A mount, by a reading of its file's link, held against one source."""

    def __init__(self, new: NewMount, name: Name, source: Source) -> None:
        self._new = new
        self._known = new.statmount
        self._name = name
        self._source = source

    def describe(self, kind: type[SourceMount]) -> tuple[SourceMount | None, str]:
        """Describe the mount as one of the source, if that shows the file as the mount does.

        Returns:
            The mount, or none and, where the source shows the file, why it would not do.
        """
        inside = self._find_root()
        if inside is None or self._has_other_ids():
            return None, ""
        try:
            root = self._open_root(inside)
        except OSError:
            return None, ""
        mount, refusal = None, ""
        try:
            if self._shows_file(inside, root):
                record = self._record(inside, root)
                refusal = self._refusal(record, self._source.fd if root is None else root)
                if not refusal:
                    mount = kind(self._new, record, self._source, root)
            return mount, refusal
        finally:
            if mount is None and root is not None:
                root.close()

    def _find_root(self) -> bytes | None:
        """Where the mount's root is, beneath the source's; None: not there."""
        info, same_file = self._source.info, self._source.same_file
        if self._known is None:
            return same_file.find_root(self._new.file, self._name, self._source.fd)
        if self._name.deleted and info.dev != self._new.dev and same_file.by_number:
            return None  # no file to compare will tell one such filesystem from another
        return paths.below(self._known.root_path, info.root)

    def _has_other_ids(self) -> bool:
        """A clone keeps the source's id-map, and only a mount without one can be given another."""
        if self._known is None:
            return False
        maps = self._source.id_maps()
        return maps not in (([], []), self._new.id_maps)

    def _open_root(self, inside: bytes) -> Fd | None:
        """Open the mount's root in the source.

        Returns:
            An O_PATH fd; None: it is deleted.

        Raises:
            OSError: it is not to be seen there.
        """
        deleted = self._name.deleted
        is_gone = deleted and self._name.path == paths.ROOT
        if self._known.root_deleted if self._known else is_gone:
            if deleted:
                return None
            raise FileNotFoundError
        try:
            return paths.open_at(self._source.fd, inside)
        except OSError as error:
            # Before 7.0 a deleted file alone does not tell whether the root is deleted too.
            if deleted and not self._known and error.errno in (errno.ENOENT, errno.ENOTDIR):
                return None
            raise

    def _shows_file(self, inside: bytes, root: Fd | None) -> bool:
        """Tell whether the source shows the file where the mount does, as far as that is seen."""
        if root is None:
            return inside != paths.ROOT  # else the source's own root is another one
        if self._name.deleted:
            return True
        try:
            return self._source.same_file.is_at(self._new.file, root, self._name.path)
        except OSError:
            return False

    def _refusal(self, record: Mount, root: int) -> str:
        """Say why the source would not do for the restore; empty: it would."""
        if self._source.is_proven:
            return ""
        try:
            dry_run(record, root, self._source.pid)
        except OSError as error:
            return (
                f"its bind source {quote(self._source.info.mountpoint)} would not do for the"
                f" restore ({error}): is it unbindable, or locked by a user namespace, or has criu"
                " no CAP_SYS_ADMIN?"
            )
        return ""

    def _record(self, inside: bytes, root: Fd | None) -> Mount:
        known, source = self._known, self._source
        record = self._new.record(self._name, source.origin)
        if root is not None:
            record.root_type = stat.S_IFMT(kernel.fstat(root).mode)
        record.filesystem = source.filesystem
        record.root = known.root_path if known else _joined(source.info.root, inside)
        shown = source.fd if root is None else root
        record.superblock = superblock_of(shown, source.info.fs_type)
        record.bind_source = BindSource(
            mnt_id=source.info.mnt_id,
            in_namespace=int(source.in_namespace),
            mountpoint=source.info.mountpoint,
            path=inside,
            id_mapped=int(known is not None and source.id_maps() != ([], [])),
        )
        record.root_deleted = int(root is None)
        if root is not None and source.tells_root and stat.S_ISDIR(record.root_type):
            record.root_handle = handle_of(root)
        return record


def _joined(root: bytes, inside: bytes) -> bytes:
    """An absolute path, and a record's path beneath it."""
    base = root.rstrip(b"/")
    return base + b"/" + inside if inside != paths.ROOT else base or b"/"


def _no_source(name: Name, known: StatMount | None) -> str:
    """Say that no attached mount shows a mount."""
    what = f"the file {quote(name.path)}"
    if known:
        root = f"{quote(known.mnt_root)} of this {quote(known.fs_type)} filesystem"
        shown_at_root = name.deleted or name.path == paths.ROOT
        what = root if shown_at_root else f"{what} beneath {root}"
    elif name.deleted:
        return (
            f"no attached mount shows where {what} was deleted from: before Linux 7.0 it is found"
            " only while a file that is not deleted is open on the same mount: open one, or close"
            " this one"
        )
    elif name.path == paths.ROOT:
        what = "the root of its mount"
    return (
        f"no attached mount shows {what} where criu runs or in the dumped namespaces: mount the"
        " filesystem so that it is seen, or close the file (it may be hidden by another mount, or"
        " on a filesystem that is mounted nowhere)"
    )
