# SPDX-License-Identifier: GPL-2.0-only
"""From an open file to its mount: classified, described and recorded when it is first met."""

from __future__ import annotations

from criu_detached.criu import log
from criu_detached.dump.describe.new_mount import NewMount
from criu_detached.dump.describe.search import describe_mount
from criu_detached.dump.observe import classify
from criu_detached.dump.observe.classify import Classifier
from criu_detached.errors import DetachedError, quote
from criu_detached.kernel.fds import Fds
from criu_detached.once import once

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from criu_detached.dump.context import DumpContext
    from criu_detached.dump.describe.mount import DetachedMount
    from criu_detached.dump.filesystems.sourceless import Sourceless
    from criu_detached.dump.open_file import OpenFile
    from criu_detached.images.records import Ghost


class Mounts:
    """The mounts of one dump, by their ids."""

    def __init__(self, context: DumpContext) -> None:
        """Begin with none.

        Args:
            context: of the dump.
        """
        self._context = context
        self._mounts: dict[int, DetachedMount | None] = {}
        self.classifier = Classifier()

    def mount_of(self, file: OpenFile) -> DetachedMount | None:
        """The mount of an open file, recorded when it is first met; None: it is not detached.

        Args:
            file: the file.

        Raises:
            DetachedError: the mount could not be realised as it is.
        """
        mnt_id = file.stat.mnt_id
        if mnt_id not in self._mounts:
            self._mounts[mnt_id] = self._new_mount(file)
        return self._mounts[mnt_id]

    def finish(self) -> Iterator[Ghost]:
        """Save what only the end shows to be needed.

        Yields:
            The records of deleted files that were put off until then.

        Raises:
            DetachedError: it cannot be saved.
        """
        for mount in self._mounts.values():
            if mount is not None:
                yield from mount.finish()

    def _new_mount(self, file: OpenFile) -> DetachedMount | None:
        kind = self.classifier.classify(file)
        if not kind.is_ours:
            log.info(f"mount {file.stat.mnt_id} is {kind.name}: left to CRIU")
            return None
        _refuse_handle(file)
        if kind.name == classify.ANONYMOUS:
            return self._new_anonymous(file)
        mount = self._describe(NewMount(file, kind.statmount))
        self._record(mount)
        return mount

    def _new_anonymous(self, file: OpenFile) -> DetachedMount | None:
        """Record the mounts of a tree, or that of the file alone."""
        from criu_detached.dump.describe import anonymous  # few dumps need it

        machine = self._context.machine
        tree = anonymous.find_tree(file, machine)
        if tree is None:
            with Fds() as kept:
                mounts = [self._describe(anonymous.mount_by_itself(file, kept, machine))]
        else:
            with tree:
                mounts = [self._describe_whole(new) for new in tree.new_mounts(machine)]
            anonymous.refuse_mixture(mounts)
        for mount in mounts:
            self._record(mount, has_plain_files=len(mounts) == 1)
        return self._mounts[file.stat.mnt_id]

    def _describe_whole(self, new: NewMount) -> DetachedMount:
        """Describe a mount by its root, through which a task reaches all of it."""
        mount = self._describe(new)
        mount.note_directory_held(new.file.fd)
        return mount

    def _describe(self, new: NewMount) -> DetachedMount:
        """Describe a mount; what has no source may come back in another way."""
        if new.mnt_id in self._context.settings.external_ids:
            return self._sourceless.external(new)
        try:
            return describe_mount(new, self._context.sources)
        except DetachedError as error:
            return self._sourceless.describe(new, error)

    def _record(self, mount: DetachedMount, *, has_plain_files: bool = True) -> None:
        """Write a mount's record, and let the fast path take its files."""
        record = mount.record
        if self._context.criu.dumps_user_namespace():
            mount.confine()
        self._context.records.mount(record)
        self._mounts[record.mnt_id] = mount
        if has_plain_files and mount.plain_root is not None and self._context.criu.flushes():
            self._context.fast_path.plain_mount_add(
                record.mnt_id, mount.plain_root, mount.bind_source.mnt_id, not mount.maps_known
            )
        kind = classify.ANONYMOUS if record.anonymous else classify.DETACHED
        log.info(
            f"mount {record.mnt_id} is {kind}; its root {quote(record.root or b'?')} "
            + mount.way_back()
        )

    @once
    def _sourceless(self) -> Sourceless:
        """What describes mounts that no attached mount shows."""
        from criu_detached.dump.filesystems.sourceless import Sourceless  # few dumps need it

        return Sourceless(self._context)


def _refuse_handle(file: OpenFile) -> None:
    """Refuse a bind mount of a namespace: CRIU would fail at restore, as with an attached one.

    It sets the position of all that is a regular file to it (open_path, criu/files-reg.c), and such
    a file has none.
    """
    what = file.fs_type.stands_for
    if what:
        raise DetachedError(
            f"it is {what} that was bind-mounted, which CRIU does not restore, be it attached or"
            " not: close it"
        )
