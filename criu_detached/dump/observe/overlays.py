# SPDX-License-Identifier: GPL-2.0-only
"""Overlays that have a layer on a filesystem, and so hold it."""

from __future__ import annotations

import errno
import os

from criu_detached import kernel, paths
from criu_detached.dump.observe.attached import open_mount
from criu_detached.dump.observe.directories import names_in
from criu_detached.dump.observe.procfs import namespace_of, namespaces_of_processes
from criu_detached.errors import quote
from criu_detached.filesystems.layers import DATA, LOWER, UPPER, split_layers
from criu_detached.filesystems.types import OVERLAY
from criu_detached.kernel import mountinfo, statmount
from criu_detached.kernel.children import ask_each

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from criu_detached.kernel.children import Answer
    from criu_detached.kernel.mountinfo import MountInfo
    from criu_detached.kernel.statmount import StatMount
    from criu_detached.kernel.walk import MountTable


_FIRST_INO = 2  # that an overlay gives, to its root: ovl_next_ino and ovl_fill_super
_SOON = 1.0  # seconds for each layer of an overlay that did not answer
_TRIES = 3  # somebody may make files in an overlay while it is looked at

# What a mount of an overlay tells: are its layers what is at their paths? The first of these that
# one of its mounts tells is what counts: elsewhere the paths may lead to other things.
_PROVEN = 0
_REFUTED = 1
_LIKELY = 2  # there is something at each path, and no more is to be seen
_UNKNOWN = 3


class Overlay:
    """An overlay, and where it is mounted."""

    __slots__ = ("dev", "places", "remote")

    def __init__(self, dev: int) -> None:
        self.dev = dev
        self.places: list[tuple[int, MountInfo]] = []  # with a process that sees it
        self.remote: list[tuple[int, StatMount]] = []  # in namespaces that no process lives in

    def layers(self) -> tuple[int, list[bytes]]:
        """A process that sees it, and the paths of its layers."""
        if self.places:
            pid, mount = self.places[0]
            return pid, _layers(mount.super_options)
        return os.getpid(), _layers(self.remote[0][1].mnt_opts)

    def where(self) -> bytes:
        """A place where it is mounted."""
        return self.places[0][1].mountpoint if self.places else self.remote[0][1].mnt_point


def list_overlays(attached: MountTable) -> list[Overlay]:
    """The overlays that are mounted in some namespace.

    Args:
        attached: all mounts; where it tells no filesystems, all namespaces are looked through.
    """
    spaces = {mount.ns_id for mount in attached if mount.magic in (0, OVERLAY.magic)}
    found: dict[int, Overlay] = {}
    if not spaces:
        return []
    for _, pids in namespaces_of_processes():
        ns_id = namespace_of(pids[0]) if 0 not in spaces else 0
        if ns_id in spaces:
            for pid, mount in mountinfo.mounts_of_namespace(pids):
                if mount.fs_type == b"overlay":
                    found.setdefault(mount.dev, Overlay(mount.dev)).places.append((pid, mount))
        if ns_id:
            spaces.discard(ns_id)
    wanted = (
        statmount.STATMOUNT_SB_BASIC | statmount.STATMOUNT_MNT_POINT | statmount.STATMOUNT_MNT_OPTS
    )
    for ns_id in spaces - {0}:
        for known in _mounts_in(ns_id, wanted):
            if known.sb_magic == OVERLAY.magic:
                found.setdefault(known.sb_dev, Overlay(known.sb_dev)).remote.append((ns_id, known))
    return list(found.values())


def _mounts_in(ns_id: int, wanted: int) -> list[StatMount]:
    try:
        return list(statmount.mounts_in_ns(ns_id, wanted))
    except OSError as error:
        if error.errno == errno.ENOENT:
            return []  # it is gone
        raise


def look_at(overlay: Overlay) -> bytes:
    """See where the layers of an overlay are. Its layers may hang, so it is for a child.

    A layer that is not known to be elsewhere may be anywhere. Not so those of a root: whoever made
    that made it of what is out of reach from within. Nor those of an overlay that is made of one
    filesystem, which is another one.

    Returns:
        What is told, the devices of what is at the paths, and a mountpoint; for Verdicts.
    """
    told: dict[int, bytes] = {}
    devices: set[int] = set()
    for pid, mount in overlay.places:
        found, places = _look_at(pid, mount)
        devices |= _devices(pid, [*_layers(mount.super_options), *places])
        if mount.mountpoint != b"/" or found in (_PROVEN, _LIKELY):
            told.setdefault(found, mount.mountpoint)
        if found == _PROVEN:
            break
    for _, known in [] if overlay.places else overlay.remote:
        layers = _layers(known.mnt_opts)
        devices |= _devices(os.getpid(), layers)
        if not _are_there(os.getpid(), layers) and known.mnt_point != b"/":
            told.setdefault(_UNKNOWN, known.mnt_point)
    found = min(told, default=_PROVEN)
    shown = b" ".join(b"%d" % dev for dev in devices)
    return b"%d;%s;%s" % (found, shown, told.get(found, overlay.where()))


class Verdicts:
    """What was found out of all overlays."""

    def __init__(self) -> None:
        self._on: dict[int, str] = {}  # by the devices of their layers
        self._unknown = ""  # one that may have a layer anywhere

    def holder(self, dev: int) -> str | None:
        """Name an overlay with a layer on a filesystem, for a message; None: there is none.

        Args:
            dev: device of the filesystem's superblock.
        """
        return self._on.get(dev) or self._unknown or None

    def note(self, answers: list[tuple[Overlay, Answer]]) -> None:
        """Take note of the answers of look_at()."""
        for overlay, answer in answers:
            if not answer.in_time:
                if not _layers_are_there(overlay):
                    self._suspect(overlay, overlay.where())
                continue
            try:
                found, devices, where = answer.data.split(b";", 2)
            except OSError:
                self._suspect(overlay, overlay.where())
                continue
            for device in devices.split():
                self._on.setdefault(
                    int(device), f"the overlay at {_place(overlay, where)} as a layer"
                )
            if int(found) in (_REFUTED, _UNKNOWN):
                self._suspect(overlay, where)

    def _suspect(self, overlay: Overlay, where: bytes) -> None:
        if not self._unknown:
            self._unknown = f"the overlay at {_place(overlay, where)} as a layer, or perhaps so"


def _place(overlay: Overlay, where: bytes) -> str:
    if overlay.places:
        return quote(where)
    return f"{quote(where)} in mount namespace {overlay.remote[0][0]}, which no process lives in,"


def _layers_are_there(overlay: Overlay) -> bool:
    """As _are_there, of an overlay that does not answer.

    What is at the path of a layer and does not answer either is no filesystem in memory, of which
    it would be wrong to say that it is elsewhere.
    """
    pid, layers = overlay.layers()

    def is_there(layer: bytes) -> Callable[[], bytes]:
        return lambda: b"yes" if _are_there(pid, [layer]) else b""

    answers = ask_each(list(map(is_there, layers)), _SOON)
    return all(not answer.in_time or answer.data for answer in answers)


def _devices(pid: int, layers: list[bytes]) -> set[int]:
    """Devices of what is at the paths of layers."""
    return {kernel.glance(b"", fd).dev for layer in layers for fd in _find(pid, layer)}


def _find(pid: int, layer: bytes) -> Iterator[int]:
    """Open what is at the path of a layer, as a process sees it and as this one does.

    Each O_PATH fd is closed after.
    """
    if not layer.startswith(b"/"):
        return  # where it starts is not known
    for root in (f"/proc/{pid}/root", "/"):
        try:
            fd = paths.open_from_root(root, layer)
        except OSError:
            continue
        try:
            yield fd
        finally:
            os.close(fd)


def _look_at(pid: int, mount: MountInfo) -> tuple[int, list[bytes]]:
    """See whether the layers of an overlay are what is at their paths.

    Paths alone tell little: what was mounted at one may be gone, and then something else is there.
    But they have to do where the root of the overlay is out of reach.

    Args:
        pid: a process that sees it.
        mount: of it.

    Returns:
        What is told, and the paths, absolute ones, if it is more than their being there.
    """
    root = open_mount(pid, mount) if mount.root == b"/" else None
    layers = _layers(mount.super_options)
    if root is None:
        return (_LIKELY if _are_there(pid, layers) else _UNKNOWN), []
    with root:
        relative = not all(layer.startswith(b"/") for layer in layers)
        for start in _above(mount.mountpoint) if relative else (b"/",):
            found = _seen_from(start, pid, mount, root)
            if found is not None:
                return (_LIKELY if mount.mountpoint in found else _PROVEN), found
    return _REFUTED, []


def _are_there(pid: int, layers: list[bytes]) -> bool:
    """Tell whether there is something at the path of each layer."""
    return all(any(True for _ in _find(pid, layer)) for layer in layers)


def _above(mountpoint: bytes) -> Iterator[bytes]:
    """Yield the directories above a mountpoint: docker has relative paths begin in one."""
    while mountpoint.strip(b"/"):
        mountpoint = mountpoint.rpartition(b"/")[0]
        yield mountpoint or b"/"


def _seen_from(start: bytes, pid: int, mount: MountInfo, root: int) -> list[bytes] | None:
    """The paths of an overlay's layers, if it shows that these are there.

    Args:
        start: where relative paths may begin.
        pid: a process that sees the overlay.
        mount: of it.
        root: fd of its root.

    Returns:
        Absolute paths, perhaps without those that are on the filesystem of another one; None: a
        layer may be somewhere else.
    """

    def absolute(names: tuple[bytes, ...]) -> list[bytes]:
        found = _layers(mount.super_options, names)
        return [
            path if path.startswith(b"/") else start.rstrip(b"/") + b"/" + path for path in found
        ]

    uppers, lowers, data = absolute((UPPER,)), absolute((LOWER,)), absolute((DATA,))
    first, *others = [*uppers, *lowers] or [b""]
    if first != mount.mountpoint:
        upper = _uppermost(pid, first, root)
        if upper is None:
            return None
        if _is_of_one_filesystem(mount, os.fstat(root), upper):
            return [first]
    # Of one for data alone nothing is shown: that something is there has to do.
    if not _are_there(pid, data):
        return None
    for layer in others:
        # What the overlay is mounted over it covers.
        if layer != mount.mountpoint and not any(_is_shown(root, fd) for fd in _find(pid, layer)):
            return None
    return [first, *others, *data]


def _uppermost(pid: int, layer: bytes, root: int) -> os.stat_result | None:
    """What is at the path of the uppermost layer, if it is that; None: it is something else."""
    for _ in range(_TRIES):
        shown = os.fstat(root)
        for fd in _find(pid, layer):
            found = os.fstat(fd)
            if found.st_dev != shown.st_dev and _taken_over(found) == _taken_over(shown):
                return found
    return None


def _taken_over(file: os.stat_result) -> tuple[int, ...]:
    """What the root of an overlay has of its uppermost layer: ovl_getattr, fs/overlayfs/inode.c.

    Other files have it of the layer that they are of. Two have the same by chance only if they
    were last changed in one tick of the kernel's clock. Owners may be mapped.
    """
    return file.st_ctime_ns, file.st_mtime_ns, file.st_mode, file.st_size


def _is_shown(root: int, layer: int) -> bool:
    """Tell whether an overlay shows something of a directory: then that is a layer of it.

    Args:
        root: fd of the overlay's root.
        layer: of the directory.
    """
    if os.fstat(layer).st_dev == os.fstat(root).st_dev:
        return False  # it is covered by the overlay
    try:
        names = names_in(layer)
    except OSError:
        return False
    for name in names:
        try:
            shown = os.stat(name, dir_fd=root, follow_symlinks=False)
            own = os.stat(name, dir_fd=layer, follow_symlinks=False)
            if _taken_over(shown) == _taken_over(own):
                return True
        except OSError:
            continue  # it is removed in the overlay, or not to be reached there
    return False


def _is_of_one_filesystem(mount: MountInfo, root: os.stat_result, upper: os.stat_result) -> bool:
    """Tell whether all layers of an overlay are where its uppermost one is.

    Then its root has the inode number of that directory, else the first that overlays give:
    ovl_map_ino, fs/overlayfs/inode.c. A directory may have that number, too (the first that is
    made in a tmpfs), and then nothing is told. With "xino" it has it in any case; "xino=auto" is
    off where a layer is in memory (ovl_lower_dir, fs/overlayfs/super.c). podman needs this:
    where it maps ids, the lower layers are mounts that are gone once the overlay is there.
    """
    if b"xino=on" in mount.super_options:
        return False
    return root.st_ino == upper.st_ino != _FIRST_INO


def _layers(options: list[bytes], names: tuple[bytes, ...] = (UPPER, LOWER, DATA)) -> list[bytes]:
    r"""The paths of layers, from options as mountinfo has them: a colon in one may be ``\072``."""
    shown = [mountinfo.unescape(option.replace(rb"\072", rb"\134:")) for option in options]
    return [path for name, path in split_layers(shown)[0] if name in names and path]
