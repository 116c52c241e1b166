# SPDX-License-Identifier: GPL-2.0-only
"""Overlays that have a layer on a filesystem, and so hold it."""

from __future__ import annotations

import os

from criu_detached import kernel, mountinfo, paths
from criu_detached.errors import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from criu_detached.mountinfo import MountInfo


_FIRST_INO = 2  # that an overlay gives, to its root: ovl_next_ino and ovl_fill_super


def overlay_on(dev: int) -> str | None:
    """Name an overlay with a layer on a filesystem in memory, for a message; None: there is none.

    A layer that can be looked at in no namespace may be there, so it counts as if it was. Not so
    those of a root: whoever made that made it of what is out of reach from within. Nor those of
    an overlay that is made of one filesystem, which is another one.

    Args:
        dev: device of the filesystem's superblock.
    """
    looked_at = set()  # overlays, by device
    others: dict[int, bytes] = {}  # the others, with a mountpoint
    for _, pids in mountinfo.namespaces():
        for pid, mount in mountinfo.mounts_of_namespace(pids or [os.getpid()]):
            if mount.fs_type != b"overlay":
                continue
            found = [_find(pid, layer) for layer in _layers(mount)]
            if any(layer and layer.st_dev == dev for layer in found):
                return f"the overlay at {quote(mount.mountpoint)} as a layer"
            if None not in found or _is_of_one_filesystem(pid, mount):
                looked_at.add(mount.dev)
            elif mount.mountpoint != b"/":
                others.setdefault(mount.dev, mount.mountpoint)
    for overlay, mountpoint in others.items():
        if overlay not in looked_at:
            return f"the overlay at {quote(mountpoint)} as a layer, or perhaps so"
    return None


def _find(pid: int, layer: bytes) -> os.stat_result | None:
    """A layer as a process sees it, or else this one; None: neither does."""
    for path in (b"/proc/%d/root/%s" % (pid, layer), layer):
        try:
            return os.stat(path)
        except OSError:
            continue
    return None


def _is_of_one_filesystem(pid: int, mount: MountInfo) -> bool:
    """Tell whether all layers of an overlay are where its upper directory is.

    Then its root has the inode number of that directory, else the first that overlays give:
    ovl_map_ino, fs/overlayfs/inode.c. A directory may have that number, too (the first that is
    made in a tmpfs), and then nothing is told. With "xino" it has it in any case; "xino=auto" is
    off where a layer is in memory (ovl_lower_dir, fs/overlayfs/super.c). podman needs this:
    where it maps ids, the lower layers are mounts that are gone once the overlay is there.
    """
    upper = [_find(pid, layer) for layer in _layers(mount, (b"upperdir",))]
    if not upper or upper[0] is None or mount.root != b"/" or b"xino=on" in mount.super_options:
        return False
    try:
        root = os.open(f"/proc/{pid}/root", kernel.O_PATH)
    except OSError:
        return False  # the process ended
    try:
        top = paths.open_mountpoint(root, mount.mountpoint)
    except OSError:
        return False
    finally:
        os.close(root)
    try:
        facts = kernel.fstat(top)
        same = (facts.mnt_id, facts.ino) == (mount.mnt_id, upper[0].st_ino)
        return same and facts.ino != _FIRST_INO
    finally:
        os.close(top)


_LAYERS = (b"upperdir", b"lowerdir", b"lowerdir+", b"datadir+")


def _layers(mount: MountInfo, names: tuple[bytes, ...] = _LAYERS) -> Iterator[bytes]:
    for option in mount.super_options:
        name, _, value = mountinfo.unescape(option).partition(b"=")
        if name in names:
            yield from filter(None, value.split(b":")) if name == b"lowerdir" else (value,)
