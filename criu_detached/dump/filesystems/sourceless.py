# SPDX-License-Identifier: GPL-2.0-only
"""Mounts that no attached mount shows, at dump: by which other way they come back."""

from __future__ import annotations

from criu_detached.criu import log
from criu_detached.dump.describe.external import ExternalMount, advice
from criu_detached.dump.describe.new_mount import NewMount
from criu_detached.dump.describe.search import describe_mount
from criu_detached.dump.filesystems.soleheld import SoleHeld
from criu_detached.dump.observe.processes import held_files
from criu_detached.dump.open_file import OpenFile
from criu_detached.errors import DetachedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.dump.context import DumpContext
    from criu_detached.dump.describe.mount import DetachedMount


class Sourceless:
    """The mounts of one dump that have no bind source."""

    def __init__(self, context: DumpContext) -> None:
        """Begin with none.

        Args:
            context: of the dump.
        """
        self._context = context
        self._sole_held = SoleHeld(context)

    def external(self, new: NewMount) -> DetachedMount:
        """Describe a mount as one that the user will provide; raises DetachedError."""
        return ExternalMount(new)

    def describe(self, new: NewMount, error: DetachedError) -> DetachedMount:
        """Describe a mount that no bind source was found for.

        Args:
            new: the mount as it was met.
            error: why there is none.

        Raises:
            DetachedError: it will not come back.
        """
        try:
            return self._describe(new, error)
        except DetachedError as refusal:
            if not self._context.settings.external_all:
                raise DetachedError(f"{refusal}; {advice(new.mnt_id)}") from refusal
            log.info(f"mount {new.mnt_id} is external: {refusal}")
        return ExternalMount(new)

    def _describe(self, new: NewMount, error: DetachedError) -> DetachedMount:
        """Before Linux 7.0 a deleted file may not show its mount's root: try another one."""
        if new.statmount is None and new.file.is_marked_deleted:
            for fd in held_files(self._context.machine, new.mnt_id):
                other = OpenFile.of(fd)
                if not other.is_marked_deleted:
                    return self._describe_by(NewMount(other, None, new.position))
        return self._sole_held.describe(new, error)

    def _describe_by(self, new: NewMount) -> DetachedMount:
        try:
            return describe_mount(new, self._context.sources)
        except DetachedError as error:
            return self._sole_held.describe(new, error)
