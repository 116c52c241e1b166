# SPDX-License-Identifier: GPL-2.0-only
"""Attached mounts, opened at their mountpoints."""

from __future__ import annotations

from criu_detached import kernel, paths
from criu_detached.kernel.fds import Fd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.kernel.mountinfo import MountInfo


def open_mount(pid: int, info: MountInfo) -> Fd | None:
    """Open an attached mount's root.

    Args:
        pid: a process that sees it; 0: this one.
        info: what that is shown of it.

    Returns:
        An O_PATH fd, the caller's; None when it cannot be reached by its mountpoint.
    """
    try:
        with Fd.open(f"/proc/{pid}/root" if pid else "/", kernel.O_PATH) as root:
            fd = paths.open_mountpoint(root, info.mountpoint)
    except OSError:
        return None
    # Its server may be gone, or not answer.
    if kernel.glance(b"", fd).mnt_id == info.mnt_id:
        return fd
    fd.close()  # another mount covers it
    return None
