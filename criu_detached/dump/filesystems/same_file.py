# SPDX-License-Identifier: GPL-2.0-only
"""Files that two superblocks show: that of a detached mount, and one made for a trial.

A filesystem that comes back as a new superblock is mounted so at dump already, for a trial.
Device numbers tell nothing then, and inode numbers may not either.
"""

from __future__ import annotations

import os

from criu_detached import kernel, paths
from criu_detached.filesystems.layers import DATA, LOWER, UPPER, Layers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.kernel import FileStat


class Twins:
    """Tells whether a file of the trial mount is the one of a detached mount."""

    def facts(self, root: int, path: bytes, fd: int, facts: FileStat) -> FileStat:
        """Facts that the file has where the trial mount shows it.

        Args:
            root: the mount's root, as the trial mount shows it.
            path: of the file beneath that root.
            fd: the file on the detached mount.
            facts: of it.

        Returns:
            Other facts than those of the path, where another file is there.

        Raises:
            OSError: there is none.
        """
        twin = paths.open_at(root, path)
        try:
            found = kernel.fstat(twin)
            alike = (found.mode & ~0o7777, found.rdev) == (facts.mode & ~0o7777, facts.rdev)
            return found if alike and self.is_one(fd, facts, twin, found, path) else facts
        finally:
            os.close(twin)

    def is_one(self, fd: int, facts: FileStat, twin: int, found: FileStat, path: bytes) -> bool:
        """Tell whether two files of one kind, at one path, are the same file.

        Args:
            fd: the one on the detached mount.
            facts: of it.
            twin: the one on the trial mount.
            found: facts of that.
            path: where they are, beneath the mount's root.
        """
        raise NotImplementedError


class NamedTwins(Twins):
    """Files that are made for their names."""

    def __init__(self, exact: bool) -> None:
        """Say how alike they must be.

        Args:
            exact: the root of the mount is a guess, so the inode has to say it.
        """
        self._exact = exact

    def is_one(self, fd: int, facts: FileStat, twin: int, found: FileStat, path: bytes) -> bool:
        """The name says enough, where the root of the mount is known."""
        return found.ino == facts.ino or not self._exact


class LayerTwins(Twins):
    """Files of an overlay and of the trial mount of its layers.

    A file handle of an overlay (Linux 6.5) is one of the layer that the file is from. A file
    that was copied up keeps that of its origin, which the copy has noted.
    """

    def __init__(self, layers: Layers, prefix: bytes) -> None:
        """Take what it needs.

        Args:
            layers: the overlay's; they stay open.
            prefix: the root of the detached mount, beneath that of the overlay.
        """
        self._layers = layers
        self.prefix = prefix

    def is_one(self, fd: int, facts: FileStat, twin: int, found: FileStat, path: bytes) -> bool:
        """Compare what layer they are from, and what file there."""
        return self.is_one_at(fd, twin, paths.join(self.prefix, path))

    def is_one_at(self, fd: int, twin: int, path: bytes) -> bool:
        """As is_one; the path is beneath the overlay's root."""
        handle = _handle(fd)
        if handle is None:
            return False
        if handle == _handle(twin):
            return True
        for option, layer in self._layers.fds:
            try:
                real = paths.open_at(layer, path)
            except OSError:
                continue
            try:
                if option == UPPER and handle == _origin(real):
                    return True
                kind, data = kernel.name_to_handle(real)
                if option in (LOWER, DATA) and (kind, data) == (handle[0], handle[2]):
                    return True
            except OSError:
                continue
            finally:
                os.close(real)
        return False


def _handle(fd: int) -> tuple[int, bytes, bytes] | None:
    """Type, UUID of the layer's filesystem and handle there, of a file of an overlay."""
    try:
        _, data = kernel.name_to_handle(fd, kernel.AT_HANDLE_FID)
    except OSError:
        return None
    return real_handle(data[3:])  # struct ovl_fh: padded


def real_handle(data: bytes) -> tuple[int, bytes, bytes] | None:
    """Take a struct ovl_fb apart (fs/overlayfs/overlayfs.h).

    It has a byte each of version, magic, length, flags and type, then UUID and handle.
    """
    if len(data) < 21 or data[1] != 0xFB or data[2] > len(data):
        return None
    return data[4], data[5:21], data[21 : data[2]]


def _origin(real: int) -> tuple[int, bytes, bytes] | None:
    """The handle that a copy in the upper directory has of what it was copied from."""
    for name in ("trusted.overlay.origin", "user.overlay.origin"):
        try:
            return real_handle(os.getxattr(b"/proc/self/fd/%d" % real, name))
        except OSError:
            continue
    return None
