# SPDX-License-Identifier: GPL-2.0-only
"""Device numbers: what the kernel writes, and back.

In the package a device number is what os.makedev() makes, as in st_dev and st_rdev. The kernel
writes others, each in places of its own. Source: include/linux/kdev_t.h.
"""

from __future__ import annotations

import os

_MINORBITS = 20


def kdev_encode(dev: int) -> int:
    """Encode as the kernel's own dev_t (MKDEV), which fdinfo of watches shows."""
    return os.major(dev) << _MINORBITS | os.minor(dev)


def kdev_decode(number: int) -> int:
    """Decode the kernel's own dev_t (MAJOR and MINOR)."""
    return os.makedev(number >> _MINORBITS, number & (1 << _MINORBITS) - 1)


def huge_encode_dev(dev: int) -> int:
    """Encode as the kernel does for loop_info64, and for f_fsid where it has nothing better."""
    major, minor = os.major(dev), os.minor(dev)
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


def huge_decode_dev(number: int) -> int:
    """Decode what huge_encode_dev() made."""
    major = (number & 0xFFF00) >> 8
    return os.makedev(major, number & 0xFF | (number >> 12) & 0xFFF00)


def format_dev(dev: int) -> str:
    """Return "major:minor", as mountinfo and sysfs have it (print_dev_t)."""
    return f"{os.major(dev)}:{os.minor(dev)}"


def parse_dev(text: bytes) -> int:
    """Read "major:minor"; raises ValueError where it is none."""
    major, minor = text.split(b":")
    return os.makedev(int(major), int(minor))


def format_dev_of_maps(dev: int) -> bytes:
    """Return it as /proc/PID/maps has it, in hexadecimal (show_vma_header_prefix)."""
    return b"%02x:%02x" % (os.major(dev), os.minor(dev))
