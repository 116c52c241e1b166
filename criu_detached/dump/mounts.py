# SPDX-License-Identifier: GPL-2.0-only
"""From an open file to its mount: classified, described and recorded when it is first met."""

from __future__ import annotations

import os

from criu_detached import kernel, paths
from criu_detached.criu import log
from criu_detached.dump.describe import external
from criu_detached.dump.describe.external import ExternalMount
from criu_detached.dump.describe.mount import DetachedMount, describe_mount
from criu_detached.dump.observe import classify
from criu_detached.dump.observe.classify import Classifier, Kind
from criu_detached.dump.observe.processes import held_files
from criu_detached.errors import DetachedError, quote
from criu_detached.filesystems.superblock import type_of
from criu_detached.filesystems.types import by_magic
from criu_detached.images.records import RECREATED, REMOUNT, SUPPLIED, Mount, is_in_namespace
from criu_detached.kernel import FileStat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from criu_detached.criu.host import Host
    from criu_detached.dump.describe.anonymous import AnonymousMounts
    from criu_detached.dump.describe.sources import SourceFinder
    from criu_detached.dump.filesystems.soleheld import SoleHeld
    from criu_detached.dump.kinds.recreated import MadeAnew
    from criu_detached.dump.writing import Recording
    from criu_detached.images.datafile import DataFileWriter
    from criu_detached.settings import Options

_LOCKABLE = (
    kernel.MOUNT_ATTR_RDONLY
    | kernel.MOUNT_ATTR_NOSUID
    | kernel.MOUNT_ATTR_NODEV
    | kernel.MOUNT_ATTR_NOEXEC
)


class Mounts:
    """The mounts of one dump, by their ids."""

    def __init__(
        self,
        host: Host,
        finder: SourceFinder,
        recording: Recording,
        options: Callable[[], Options],
        contents: Callable[[], DataFileWriter],
    ) -> None:
        """Begin with none.

        Args:
            host: CRIU.
            finder: finds bind sources.
            recording: where they are recorded.
            options: gives the settings.
            contents: gives the data file, which takes what is in filesystems in memory.
        """
        self._host = host
        self._finder = finder
        self._recording = recording
        self._options = options
        self._contents = contents
        self._classifier = Classifier()
        self._mounts: dict[int, DetachedMount | None] = {}
        self._anonymous: AnonymousMounts | None = None
        self._sole_held: SoleHeld | None = None

    def is_detached(self, fd: int, facts: FileStat) -> bool:
        """Tell whether an open file is on a mount that the plugin is there for.

        Args:
            fd: the file.
            facts: of it.
        """
        kind = self._classifier.classify(fd, facts.mnt_id).name
        return kind in (classify.DETACHED, classify.ANONYMOUS)

    def mount_of(self, fd: int, link: bytes, facts: FileStat) -> DetachedMount | None:
        """The mount of an open file, recorded when it is first met; None: it is not detached.

        Args:
            fd: the file.
            link: its /proc/self/fd link, which starts with "/".
            facts: of it.

        Raises:
            DetachedError: the mount could not be realised as it is.
        """
        try:
            return self._mounts[facts.mnt_id]
        except KeyError:
            pass
        mount = self._new_mount(fd, link, facts)
        self._mounts[facts.mnt_id] = mount
        return mount

    def link_in(self, mount: DetachedMount, link: bytes) -> bytes:
        """The path of a file from its mount's root: of an anonymous one the link begins elsewhere.

        Args:
            mount: that it is on.
            link: its /proc/self/fd link.
        """
        record = mount.record
        return self._the_anonymous().relative(link, record.mnt_id) if record.anonymous else link

    def note_file(self, mount: DetachedMount, fd: int, facts: FileStat) -> None:
        """Take note of an open file that is recorded: it may be the fd of an anonymous tree.

        Args:
            mount: that it is on.
            fd: the file.
            facts: of it.

        Raises:
            DetachedError: the tree would not come back with it.
        """
        if mount.record.anonymous:
            self._the_anonymous().note(fd, facts)

    def finish(self, made_anew: MadeAnew) -> None:
        """Save what only the end shows to be needed.

        Args:
            made_anew: takes note of deleted files that will be new ones.

        Raises:
            DetachedError: it cannot be saved.
        """
        if self._sole_held is not None:
            self._sole_held.finish(made_anew)

    def _new_mount(self, fd: int, link: bytes, facts: FileStat) -> DetachedMount | None:
        kind = self._classifier.classify(fd, facts.mnt_id)
        if kind.name in (classify.DETACHED, classify.ANONYMOUS):
            _refuse_handle(fd)
        if kind.name == classify.ANONYMOUS:
            mounts = self._the_anonymous().describe(fd, link, facts)
            for mount in mounts:
                self._record_mount(mount, kind, has_plain_files=len(mounts) == 1)
            return self._mounts[facts.mnt_id]
        if kind.name != classify.DETACHED:
            log.info(f"mount {facts.mnt_id} is {kind.name}: left to CRIU")
            return None
        mount = self._describe_or_leave(fd, link, facts, kind)
        self._record_mount(mount, kind)
        return mount

    def _record_mount(
        self, mount: DetachedMount, kind: Kind, *, has_plain_files: bool = True
    ) -> None:
        """Write a mount's record, and let the fast path take its files."""
        record = mount.record
        source = record.bind_source
        assert source is not None
        if self._host.criu.dumps_user_namespace():
            if record.origin == REMOUNT:
                _confine(record)
            if record.anonymous and record.origin != RECREATED and not is_in_namespace(record):
                _refuse_unlocked(record)
        self._recording.writer().mount(record)
        self._mounts[record.mnt_id] = mount
        superblock = record.superblock
        assert superblock is not None
        served = by_magic(superblock.magic).server
        plain = has_plain_files and not mount.twins and not served
        if self._host.criu.flushes() and mount.root >= 0 and plain:
            compare_owner = not mount.maps_known
            self._host.fast_path.plain_mount_add(
                record.mnt_id, mount.root, source.mnt_id, compare_owner
            )
        log.info(
            f"mount {record.mnt_id} is {kind.name}; its root {quote(record.root or b'?')} "
            + _way_back(record)
        )

    def _describe_or_leave(
        self, fd: int, link: bytes, facts: FileStat, kind: Kind
    ) -> DetachedMount:
        """Describe a mount; what has no source may be the user's to supply."""
        options = self._options()
        if facts.mnt_id in options.external_ids:
            return ExternalMount(fd, link, facts, kind)
        try:
            return self._describe_mount(fd, link, facts, kind)
        except DetachedError as error:
            if not options.external_all:
                raise DetachedError(f"{error}; {external.advice(facts.mnt_id)}") from error
            log.info(f"mount {facts.mnt_id} is external: {error}")
        return ExternalMount(fd, link, facts, kind)

    def _describe_mount(self, fd: int, link: bytes, facts: FileStat, kind: Kind) -> DetachedMount:
        """Describe a mount by a file on it; before Linux 7.0 a deleted one may not do."""
        try:
            return describe_mount(fd, link, facts, kind, self._finder.candidates)
        except DetachedError as error:
            if not kind.statmount and link.endswith(paths.DELETED):
                for other in held_files(facts.mnt_id):
                    other_link = os.readlink(b"/proc/self/fd/%d" % other)
                    if not other_link.endswith(paths.DELETED):
                        other_facts = kernel.fstat(other)
                        return self._describe_mount(other, other_link, other_facts, kind)
            return self._the_sole_held().describe(fd, link, facts, kind, error)

    def _the_anonymous(self) -> AnonymousMounts:
        """What describes anonymous mounts."""
        if self._anonymous is None:
            from criu_detached.dump.describe.anonymous import (
                AnonymousMounts,  # few dumps need it
            )

            self._anonymous = AnonymousMounts(self._describe_or_leave)
        return self._anonymous

    def _the_sole_held(self) -> SoleHeld:
        """What describes mounts that have no bind source."""
        if self._sole_held is None:
            from criu_detached.dump.filesystems.soleheld import SoleHeld

            self._sole_held = SoleHeld(self._host.criu, self._recording.writer, self._contents())
        return self._sole_held


def _refuse_handle(fd: int) -> None:
    """Refuse a bind mount of a namespace: CRIU would fail at restore, as with an attached one.

    It sets the position of all that is a regular file to it (open_path, criu/files-reg.c), and such
    a file has none.
    """
    what = type_of(fd).stands_for
    if what:
        raise DetachedError(
            f"it is {what} that was bind-mounted, which CRIU does not restore, be it attached or"
            " not: close it"
        )


def _confine(mount: Mount) -> None:
    """What is mounted anew is the host's: a user namespace gets no privileges from it."""
    confined = mount.attr | kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV
    if confined != mount.attr:
        log.info(
            f"mount {mount.mnt_id} will be nosuid and nodev: its filesystem will be mounted by the"
            " host, and the dumped tasks are in a user namespace"
        )
        mount.attr = confined


def _refuse_unlocked(mount: Mount) -> None:
    """Refuse an anonymous mount whose flags tasks could take away after the restore.

    Whoever has its tree fd may do so by mount_setattr(2), unless the flags are locked, as those
    of mounts are that a user namespace was given (lock_mnt_tree, fs/namespace.c).
    """
    if mount.attr & _LOCKABLE:
        raise DetachedError(
            "it is on an anonymous mount with restrictions (ro, nosuid, nodev, noexec) and would"
            " come from where criu runs; the dumped tasks, in a user namespace, could lift them:"
            " mount its filesystem in their mount namespace, or close the fd of its tree"
        )


def _way_back(mount: Mount) -> str:
    source = mount.bind_source
    assert source is not None
    if mount.origin == SUPPLIED:
        return external.at_restore(mount)
    if mount.origin == REMOUNT:
        return "is on a filesystem that will be mounted again"
    if mount.origin == RECREATED:
        return "is on a filesystem that will be made anew"
    return f"is shown by mount {source.mnt_id} at {quote(source.mountpoint)}" + (
        " in the dumped namespace" if source.in_namespace else ""
    )
