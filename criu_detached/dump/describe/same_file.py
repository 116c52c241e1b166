# SPDX-License-Identifier: GPL-2.0-only
"""Which file of a source is one that is open on a detached mount?

That a source is of the very superblock is the rule: see dump/filesystems/same_file.py for others.
"""

from __future__ import annotations

from criu_detached import paths
from criu_detached.dump.describe import roots

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.dump.open_file import OpenFile
    from criu_detached.paths import Name


class SameFile:
    """Tells files of a source apart, which is of the detached mount's superblock."""

    # Device and inode are those of the detached mount: what compares these does not need this.
    by_number = True

    def is_at(self, file: OpenFile, root: int, path: bytes) -> bool:
        """Tell whether a path of the source leads to an open file.

        Args:
            file: on the detached mount.
            root: fd of that mount's root, as the source shows it.
            path: beneath it.

        Raises:
            OSError: there is nothing, or another mount is in the way.
        """
        found = paths.stat_at(root, path)
        return (found.dev, found.ino) == (file.stat.dev, file.stat.ino)

    def shows(self, file: OpenFile, root: int, path: bytes) -> bool:
        """As is_at, and tell what is not there from what is."""
        try:
            return self.is_at(file, root, path)
        except OSError:
            return False

    def find_root(self, file: OpenFile, name: Name, source: int) -> bytes | None:
        """Find the root of a detached mount, where the kernel does not tell it.

        Args:
            file: on the detached mount.
            name: its path from that mount's root.
            source: fd of the source's root.

        Returns:
            The root's path beneath the source's; None: it is not found there.
        """
        return roots.find_root(file, name, source)
