# SPDX-License-Identifier: GPL-2.0-only
"""From the record of a filesystem in memory to a new, empty one; fill.py makes its files."""

from __future__ import annotations

from criu_detached.errors import DetachedError, quote
from criu_detached.kernel import new_mounts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.images.records import Filesystem
    from criu_detached.kernel.fds import Fd

# What is above the limits while the filesystem is filled: directories to names of deleted
# files, which are gone at the end.
_SPARE_BYTES = 64 << 20
_SPARE_INODES = 10_000

_UNITS = {b"k": 10, b"m": 20, b"g": 30}
_LIMITS = (b"size", b"nr_inodes")
_READ_ONLY = b"ro"


def make_memory(filesystem: Filesystem) -> Fd:
    """Make an empty filesystem with room to spare.

    Args:
        filesystem: its record.

    Returns:
        A tree fd of a mount of it, the caller's.

    Raises:
        DetachedError: the kernel refuses one of its options.
    """
    assert filesystem.superblock is not None
    fs_type = filesystem.superblock.fs_type
    options = [_with_room(each) for each in filesystem.options if each != _READ_ONLY]
    try:
        return new_mounts.new_mount(fs_type, filesystem.source, options)
    except OSError as error:
        raise _cannot_make(filesystem, error) from error


def set_limits(filesystem: Filesystem, tree: int) -> None:
    """Give a filesystem its own limits.

    Args:
        filesystem: its record.
        tree: the root of a mount of it.

    Raises:
        DetachedError: it holds more.
    """
    options = [
        option
        for option in filesystem.options
        if option == _READ_ONLY or option.partition(b"=")[0] in _LIMITS
    ]
    try:
        if options:
            new_mounts.remount(tree, options)
    except OSError as error:
        raise _cannot_make(filesystem, error) from error


def _with_room(option: bytes) -> bytes:
    name, _, value = option.partition(b"=")
    if name not in _LIMITS or not (number := _parse(value)):
        return option  # none, or in percent of the machine's memory
    return b"%s=%d" % (name, number + (_SPARE_BYTES if name == b"size" else _SPARE_INODES))


def _parse(value: bytes) -> int:
    shift = _UNITS.get(value[-1:].lower(), 0)
    digits = value[:-1] if shift else value
    return int(digits) << shift if digits.isdigit() and len(digits) < 19 else 0


def _cannot_make(filesystem: Filesystem, error: OSError) -> DetachedError:
    assert filesystem.superblock is not None
    return DetachedError(
        f"can't make a {quote(filesystem.superblock.fs_type)} as it was"
        f" ({quote(b','.join(filesystem.options))}): {error}"
    )
