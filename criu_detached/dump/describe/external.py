# SPDX-License-Identifier: GPL-2.0-only
"""Mounts that the user will provide at restore (the setting ``external``), at dump.

No attached mount shows their files here, so a file is known by its link alone.
"""

from __future__ import annotations

from criu_detached import paths
from criu_detached.dump.describe.mount import DetachedMount
from criu_detached.errors import DetachedError, quote
from criu_detached.filesystems.superblock import superblock_of
from criu_detached.filesystems.types import name_for_messages
from criu_detached.images.records import SUPPLIED, BindSource
from criu_detached.settings import EXTERNAL, IMAGES_FILE, SOURCE, WHERE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.dump.describe.new_mount import NewMount
    from criu_detached.dump.open_file import OpenFile
    from criu_detached.paths import Name


def advice(mnt_id: int) -> str:
    """Say how a mount that has no source can be dumped all the same."""
    return f'or supply it yourself at restore: for that, write "{quote(EXTERNAL)} {mnt_id}" {WHERE}'


class ExternalMount(DetachedMount):
    """A detached mount that the user will provide."""

    def __init__(self, new: NewMount) -> None:
        """Describe a mount.

        Args:
            new: the mount as it was met.

        Raises:
            DetachedError: nothing that is provided could stand for it.
        """
        file, known = new.file, new.statmount
        name = self.locate(file)
        is_root = name.path == paths.ROOT
        if (known and known.root_deleted) or (is_root and name.deleted):
            raise DetachedError("the root of its mount is deleted, so the mount can't be supplied")
        fs_type = known.fs_type if known else name_for_messages(file.statfs.magic)
        record = new.record(name, SUPPLIED)
        record.root = known.mnt_root if known else b""
        record.superblock = superblock_of(file.fd, fs_type)
        record.bind_source = BindSource(path=paths.ROOT)
        super().__init__(new, record)

    def locate(self, file: OpenFile) -> Name:
        """Read a link that nothing can be compared with.

        Args:
            file: with its path from the mount's root.

        Raises:
            DetachedError: it may mean two things, as that of a deleted file with another name.
        """
        if len(file.readings) > 1:
            raise DetachedError(
                "whether it is deleted or so named can't be told on a mount that is to be"
                " supplied: close it"
            )
        return file.readings[0]

    def way_back(self) -> str:
        """Say what the user has to do."""
        return (
            f"on {quote(self.superblock.fs_type)} is to be supplied at restore: write"
            f' "{quote(SOURCE)} {self.record.mnt_id} PATH" to {IMAGES_FILE} in the image directory'
            " by then"
        )
