# SPDX-License-Identifier: GPL-2.0-only
"""What sysfs says of block devices; each is given by its name there, as "sda1" or "loop0"."""

from __future__ import annotations

import os

from criu_detached.kernel.devnum import format_dev, parse_dev

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_CLASS = b"/sys/class/block/"


def block_devices() -> list[bytes]:
    """Return the names of all block devices, partitions among them."""
    return sorted(os.listdir(_CLASS))


def attribute(name: bytes, path: bytes) -> bytes:
    """Return an attribute of a device, less the newline; empty where it has none."""
    return _content(_CLASS + name + b"/" + path)


def _content(path: bytes) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read().removesuffix(b"\n")
    except OSError:
        return b""


def number_of(name: bytes) -> int:
    """Return the device number of a device; 0 where there is no such device."""
    return parse_dev(attribute(name, b"dev") or b"0:0")


def name_of(dev: int) -> bytes:
    """Return the name of the device with a number; raises OSError where there is none."""
    return os.readlink(_by_number(dev)).split(b"/")[-1]


def _by_number(dev: int) -> bytes:
    return b"/sys/dev/block/" + format_dev(dev).encode("ascii")


def node_with(dev: int) -> bytes:
    """Return the node that the device with a number has in /dev; empty where there is none."""
    for line in _content(_by_number(dev) + b"/uevent").split(b"\n"):
        if line.startswith(b"DEVNAME="):
            return b"/dev/" + line.removeprefix(b"DEVNAME=")
    return b""


def node_of(name: bytes) -> bytes:
    """Return the node that a device has in /dev."""
    return b"/dev/" + name.replace(b"!", b"/")


def disk_of(partition: bytes) -> bytes:
    """Return the device that a partition is of."""
    return os.readlink(_CLASS + partition).split(b"/")[-2]


def partitions_of(name: bytes) -> Iterator[bytes]:
    """Yield the partitions of a device."""
    for part in sorted(os.listdir(_CLASS + name)):
        if attribute(part, b"partition"):
            yield part


def is_part_of_another(name: bytes) -> bool:
    """Tell whether other block devices are made of a device (RAID, multipath, LVM)."""
    try:
        return bool(os.listdir(_CLASS + name + b"/holders"))
    except OSError:
        return False
