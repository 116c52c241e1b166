# SPDX-License-Identifier: GPL-2.0-only
"""What file handles lead to: a file on another mount of its filesystem, and where it lies there."""

from __future__ import annotations

import errno
import os
import stat

from criu_detached import kernel
from criu_detached.kernel.fds import Fd, link_of, reopen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.images.records import Handle


def open_on(root: int, handle: Handle) -> Fd:
    """Open a file by its handle on the mount of a root.

    Args:
        root: an fd of the root, O_PATH will do.
        handle: of the file.

    Returns:
        An O_PATH fd, the caller's. What it leads to need not be beneath that root.

    Raises:
        OSError: there is no such file, or the root is no directory.
    """
    if not stat.S_ISDIR(kernel.fstat(root).mode):
        # A device would notice, and a lease be broken. What is shown is that file alone.
        raise OSError(errno.EOPNOTSUPP, "a source of one file is not opened")
    # open_by_handle_at(2) refuses an O_PATH fd as the mount, so open the root for real.
    with reopen(root, os.O_RDONLY) as mount:
        return kernel.open_by_handle(mount, (handle.type, handle.bytes), kernel.O_PATH)


def link_on(mount: int, handle: Handle) -> bytes:
    """Return the link of what a handle leads to on the mount of an open file.

    Args:
        mount: the open file, no O_PATH fd.
        handle: of the file that is looked for.

    Raises:
        OSError: there is no such file.
    """
    with kernel.open_by_handle(mount, (handle.type, handle.bytes), kernel.O_PATH) as fd:
        return link_of(fd)
