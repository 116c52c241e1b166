# SPDX-License-Identifier: GPL-2.0-only
"""What libblkid finds on a device."""

from __future__ import annotations

from criu_detached._kernel import ffi, lib
from criu_detached.kernel.calls import checked


def blkid_probe(fd: int, offset: int = 0) -> tuple[bytes, bytes, bytes]:
    """Return what libblkid finds in a device or an image file: TYPE, UUID and UUID_SUB.

    Only for CRIU's own process: the library is loaded for it.

    Args:
        fd: open for reading.
        offset: where the filesystem starts.

    Raises:
        OSError: ENODATA when there is no filesystem, or more than one; ELIBACC when there
            is no libblkid.
    """
    values = ffi.new("char[192]")
    checked(lib.blkid_probe(fd, offset, values), "libblkid")
    raw = bytes(ffi.buffer(values))
    return raw[:64].rstrip(b"\0"), raw[64:128].rstrip(b"\0"), raw[128:].rstrip(b"\0")
