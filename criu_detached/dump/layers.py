# SPDX-License-Identifier: GPL-2.0-only
"""Overlays that have a layer on a filesystem, and so hold it."""

from __future__ import annotations

import os

from criu_detached import kernel, mountinfo, paths
from criu_detached.dump import processes
from criu_detached.errors import quote
from criu_detached.fstypes import OVERLAYFS_MAGIC
from criu_detached.kernel import namespaces, statmount
from criu_detached.overlay_layers import DATA, LOWER, UPPER, take_apart

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from criu_detached.kernel.statmount import StatMount
    from criu_detached.mountinfo import MountInfo


_FIRST_INO = 2  # that an overlay gives, to its root: ovl_next_ino and ovl_fill_super
_TRIES = 3  # somebody may make files in an overlay while it is looked at


def overlay_on(dev: int) -> str | None:
    """Name an overlay with a layer on a filesystem in memory, for a message; None: there is none.

    A layer that can be looked at in no namespace may be there, so it counts as if it was. Not so
    those of a root: whoever made that made it of what is out of reach from within. Nor those of
    an overlay that is made of one filesystem, which is another one.

    Args:
        dev: device of the filesystem's superblock.
    """
    seen, looked_at = set(), set()  # overlays, by device
    others: dict[int, bytes] = {}  # those that were not looked at, with a mountpoint
    inodes = set()
    for inode, pids in processes.namespaces():
        inodes.add(inode)
        for pid, mount in mountinfo.mounts_of_namespace(pids or [os.getpid()]):
            if mount.fs_type != b"overlay":
                continue
            seen.add(mount.dev)
            found = [_find(pid, layer) for layer in _layers(mount.super_options)]
            if _is_on(dev, found):
                return f"the overlay at {quote(mount.mountpoint)} as a layer"
            if _is_told(pid, mount, all(found)):
                looked_at.add(mount.dev)
            elif mount.mountpoint != b"/":
                others.setdefault(mount.dev, mount.mountpoint)
    for overlay, mountpoint in others.items():
        if overlay not in looked_at:
            return f"the overlay at {quote(mountpoint)} as a layer, or perhaps so"
    return _without_process(dev, inodes, seen)


def _without_process(dev: int, inodes: set[int], seen: set[int]) -> str | None:
    """As overlay_on, for what is mounted in namespaces alone that no process lives in.

    Args:
        dev: as there.
        inodes: of the other namespaces.
        seen: overlays in those.
    """
    for ns_id, mount in _mounts_without_process(inodes):
        if mount.sb_magic != OVERLAYFS_MAGIC or mount.sb_dev in seen:
            continue
        found = [_find(os.getpid(), layer) for layer in _layers(mount.mnt_opts)]
        name = f"the overlay at {quote(mount.mnt_point)} in mount namespace {ns_id}, which no"
        if _is_on(dev, found):
            return f"{name} process lives in, as a layer"
        if not all(found) and mount.mnt_point != b"/":
            return f"{name} process lives in, as a layer, or perhaps so"
    return None


def _mounts_without_process(inodes: set[int]) -> Iterator[tuple[int, StatMount]]:
    wanted = (
        statmount.STATMOUNT_SB_BASIC | statmount.STATMOUNT_MNT_POINT | statmount.STATMOUNT_MNT_OPTS
    )
    try:
        for fd in namespaces.mount_ns_fds():
            if os.fstat(fd).st_ino not in inodes:
                ns_id = namespaces.mount_ns_id(fd)
                yield from ((ns_id, mount) for mount in statmount.mounts_in_ns(ns_id, wanted))
    except OSError:
        pass  # before Linux 6.12, and in a PID namespace


def _is_on(dev: int, layers: list[list[os.stat_result]]) -> bool:
    return any(place.st_dev == dev for places in layers for place in places)


def _find(pid: int, layer: bytes) -> list[os.stat_result]:
    """What is at the path of a layer, as a process sees it and as this one does."""
    if not layer.startswith(b"/"):
        return []  # where it starts is not known
    found = []
    for root in (f"/proc/{pid}/root", "/"):
        try:
            fd = _open_in(root, layer)
        except OSError:
            continue
        found.append(os.fstat(fd))
        os.close(fd)
    return found


def _open_in(root: str, path: bytes) -> int:
    """An O_PATH fd of a path below a root, which symlinks do not leave; raises OSError."""
    top = os.open(root, kernel.O_PATH)
    try:
        return kernel.openat2(top, path, kernel.O_PATH, kernel.RESOLVE_IN_ROOT)
    finally:
        os.close(top)


def _is_told(pid: int, mount: MountInfo, complete: bool) -> bool:
    """Tell whether it is known where all layers of an overlay are.

    Args:
        pid: a process that sees it.
        mount: of it.
        complete: something is at the path of each layer.
    """
    uppers = _layers(mount.super_options, (UPPER,))
    uppermost = next(iter(uppers or _layers(mount.super_options)), b"")
    for _ in range(_TRIES):
        root = _root_of(mount, pid)
        if root is None:
            return complete
        layers = [layer for layer in _find(pid, uppermost) if _times(layer) == _times(root)]
        if layers:
            return complete or (bool(uppers) and _is_of_one_filesystem(mount, root, layers[0]))
    return False  # something else is at that path now


def _times(directory: os.stat_result) -> tuple[int, int]:
    """What the root of an overlay has of its uppermost layer: ovl_getattr, fs/overlayfs/inode.c.

    No two directories have the same by chance.
    """
    return directory.st_ctime_ns, directory.st_mtime_ns


def _is_of_one_filesystem(mount: MountInfo, root: os.stat_result, upper: os.stat_result) -> bool:
    """Tell whether all layers of an overlay are where its upper directory is.

    Then its root has the inode number of that directory, else the first that overlays give:
    ovl_map_ino, fs/overlayfs/inode.c. A directory may have that number, too (the first that is
    made in a tmpfs), and then nothing is told. With "xino" it has it in any case; "xino=auto" is
    off where a layer is in memory (ovl_lower_dir, fs/overlayfs/super.c). podman needs this:
    where it maps ids, the lower layers are mounts that are gone once the overlay is there.
    """
    if b"xino=on" in mount.super_options:
        return False
    return root.st_ino == upper.st_ino != _FIRST_INO


def _root_of(mount: MountInfo, pid: int) -> os.stat_result | None:
    """The root of an overlay, as a process sees it; None: it is out of reach."""
    if mount.root != b"/":
        return None
    try:
        root = os.open(f"/proc/{pid}/root", kernel.O_PATH)
    except OSError:
        return None  # the process ended
    try:
        top = paths.open_mountpoint(root, mount.mountpoint)
    except OSError:
        return None
    finally:
        os.close(root)
    try:
        return os.fstat(top) if kernel.fstat(top).mnt_id == mount.mnt_id else None
    finally:
        os.close(top)


def _layers(options: list[bytes], names: tuple[bytes, ...] = (UPPER, LOWER, DATA)) -> list[bytes]:
    r"""The paths of layers, from options as mountinfo has them: a colon in one may be ``\072``."""
    shown = [mountinfo.unescape(option.replace(rb"\072", rb"\134:")) for option in options]
    return [path for name, path in take_apart(shown)[0] if name in names and path]
