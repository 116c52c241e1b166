# SPDX-License-Identifier: GPL-2.0-only
"""From the record of an overlay to a new one over the same layers, at restore."""

from __future__ import annotations

import time

from criu_detached import kernel
from criu_detached.errors import DetachedError, quote
from criu_detached.filesystems.layers import DATA, LOWER, UPPER, WORK, Layers, is_in_use
from criu_detached.filesystems.superblock import is_same, superblock_of
from criu_detached.kernel import new_mounts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.images.records import Filesystem, Layer
    from criu_detached.kernel.fds import Fd

# The old overlay may be on its way out: the kernel unmounts it after the last task's end.
_TRIES, _PAUSE = 100, 0.02  # seconds

_OPTIONS = (UPPER, WORK, LOWER, DATA)


def mount_layers(filesystem: Filesystem, same_boot: bool) -> tuple[Fd, bool]:
    """Mount an overlay as it was. Runs in a private mount namespace.

    Args:
        filesystem: its record.
        same_boot: the dump was made on this very boot of the system.

    Returns:
        A tree fd of the mount, and whether the layers are surely the same.

    Raises:
        DetachedError: it cannot be mounted, or would be another one.
    """
    for layer in filesystem.layers:
        if layer.option not in _OPTIONS or layer.superblock is None or b"\0" in layer.path:
            raise DetachedError(f"an overlay has the invalid layer {quote(layer.path)}")
    layers = Layers([(layer.option, layer.path) for layer in filesystem.layers])
    try:
        same = [
            _is_layer(layer, fd, same_boot)
            for layer, (_, fd) in zip(filesystem.layers, layers.fds, strict=True)
        ]
        _wait_for_upper(layers)
        options = filesystem.options
        return new_mounts.new_mount(b"overlay", filesystem.source, options, layers.fds), all(same)
    except OSError as error:
        raise DetachedError(f"can't mount an overlay again: {error}") from error
    finally:
        layers.close()


def _is_layer(layer: Layer, fd: int, same_boot: bool) -> bool:
    """Tell whether a directory is surely the one of the dump; refuse what surely is not.

    After a move to another machine its path has to do.
    """
    assert layer.superblock is not None
    found = superblock_of(fd, b"")
    same = is_same(layer.superblock, found, same_boot)
    if found.magic == layer.superblock.magic:
        if same and kernel.fstat(fd).ino == layer.ino:
            return True
        if not same and not same_boot:
            return False
    raise DetachedError(
        f"{quote(layer.path)} ({quote(layer.option)} of an overlay) is another directory than"
        " at the dump: put the right one there"
    )


def _wait_for_upper(layers: Layers) -> None:
    upper = layers.find(UPPER)
    if upper < 0:
        return
    for _ in range(_TRIES):
        if not is_in_use(upper):
            return
        time.sleep(_PAUSE)
    path = next(
        path for path, (name, _) in zip(layers.paths, layers.fds, strict=True) if name == UPPER
    )
    raise DetachedError(
        f"{quote(path)}, the upper directory of an overlay, is in use by one that is still mounted"
        " or held: end the dumped processes (--leave-running?) and whatever else holds it"
    )
