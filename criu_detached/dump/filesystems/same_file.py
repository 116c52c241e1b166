# SPDX-License-Identifier: GPL-2.0-only
"""Files that two superblocks show: that of a detached mount, and one of a probe mount.

A filesystem that comes back as a new superblock is mounted so at dump already, for a moment.
Device numbers tell nothing then, and inode numbers may not either.
"""

from __future__ import annotations

import os

from criu_detached import kernel, paths
from criu_detached.dump.describe.roots import SameFile
from criu_detached.dump.open_file import OpenFile
from criu_detached.filesystems.layers import DATA, LOWER, UPPER
from criu_detached.kernel.fds import magic_link

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.filesystems.layers import Layers
    from criu_detached.paths import Name

    RealHandle = tuple[int, bytes, bytes]


class OtherSuperblock(SameFile):
    """Tells whether a file of the probe mount is the one of a detached mount."""

    by_number = False

    def is_at(self, file: OpenFile, root: int, path: bytes) -> bool:
        """Compare with the file that the probe mount shows at the path."""
        with paths.open_at(root, path) as fd:
            shown = OpenFile.of(fd)
            return _is_alike(file, shown) and self.is_one(file, shown, path)

    def find_root(self, file: OpenFile, name: Name, source: int) -> bytes | None:
        """Take the source's own root: such filesystems are nowhere else, and have no inodes."""
        try:
            return paths.ROOT if self.is_at(file, source, name.path) else None
        except OSError:
            return None

    def is_one(self, file: OpenFile, shown: OpenFile, path: bytes) -> bool:
        """Tell whether two files of one kind, at one path, are the same file.

        Args:
            file: on the detached mount.
            shown: on the probe mount.
            path: where they are, beneath the mount's root.
        """
        raise NotImplementedError


def _is_alike(one: OpenFile, other: OpenFile) -> bool:
    """Tell whether two files are of one kind."""
    kinds = [(file.stat.mode & ~0o7777, file.stat.rdev) for file in (one, other)]
    return kinds[0] == kinds[1]


class SameName(OtherSuperblock):
    """Files that the kernel makes for their names."""

    def __init__(self, exact: bool) -> None:
        """Say how alike they must be.

        Args:
            exact: the root of the mount is a guess, so the inode has to say it.
        """
        self._exact = exact

    def is_one(self, file: OpenFile, shown: OpenFile, path: bytes) -> bool:
        """The name says enough, where the root of the mount is known."""
        return shown.stat.ino == file.stat.ino or not self._exact


class SameLayer(OtherSuperblock):
    """Files of an overlay and of the probe mount of its layers.

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

    def is_one(self, file: OpenFile, shown: OpenFile, path: bytes) -> bool:
        """Compare what layer they are from, and what file there."""
        return self.is_one_at(file.fd, shown.fd, paths.join(self.prefix, path))

    def is_one_at(self, fd: int, shown: int, path: bytes) -> bool:
        """As is_one, of fds; the path is beneath the overlay's root."""
        handle = _handle(fd)
        if handle is None:
            return False
        return handle == _handle(shown) or any(
            _is_real(layer, path, option, handle) for option, layer in self._layers.fds
        )


def _is_real(layer: int, path: bytes, option: bytes, handle: RealHandle) -> bool:
    """Tell whether a layer has the file of a handle at a path."""
    try:
        with paths.open_at(layer, path) as real:
            if option == UPPER and handle == _origin(real):
                return True
            kind, data = kernel.name_to_handle(real)
            return option in (LOWER, DATA) and (kind, data) == (handle[0], handle[2])
    except OSError:
        return False


def _handle(fd: int) -> RealHandle | None:
    """Type, UUID of the layer's filesystem and handle there, of a file of an overlay."""
    try:
        _, data = kernel.name_to_handle(fd, kernel.AT_HANDLE_FID)
    except OSError:
        return None
    return real_handle(data[3:])  # struct ovl_fh: padded


def real_handle(data: bytes) -> RealHandle | None:
    """Take a struct ovl_fb apart (fs/overlayfs/overlayfs.h).

    It has a byte each of version, magic, length, flags and type, then UUID and handle.
    """
    if len(data) < 21 or data[1] != 0xFB or data[2] > len(data):
        return None
    return data[4], data[5:21], data[21 : data[2]]


def _origin(real: int) -> RealHandle | None:
    """The handle that a copy in the upper directory has of what it was copied from."""
    for name in ("trusted.overlay.origin", "user.overlay.origin"):
        try:
            return real_handle(os.getxattr(magic_link(real), name))
        except OSError:
            continue
    return None
