# SPDX-License-Identifier: GPL-2.0-only
"""Filesystems that another program or another machine serves: they cannot be mounted again."""

from __future__ import annotations

from criu_detached.errors import DetachedError

# linux/magic.h and fs/*/super.c
_SERVED = {
    0x65735546: "FUSE",  # virtiofs as well
    0x6969: "NFS",
    0xFF534D42: "CIFS",
    0xFE534D42: "CIFS",
    0x01021997: "9p",
    0x00C36400: "Ceph",
    0x6B414653: "AFS",
}


def refuse_served(magic: int) -> None:
    """Refuse a mount of such a filesystem.

    Args:
        magic: its statfs f_type.

    Raises:
        DetachedError: it is one.
    """
    if magic in _SERVED:
        raise DetachedError(
            f"its filesystem is of type {_SERVED[magic]}, which its server alone can mount again:"
            " mount it somewhere before the dump"
        )
