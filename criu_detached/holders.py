# SPDX-License-Identifier: GPL-2.0-only
"""What processes hold on a mount, as procfs shows it."""

from __future__ import annotations

import os

from criu_detached import kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


def held_files(mnt_id: int) -> Iterator[int]:
    """Yield an O_PATH fd of each file on a mount that some process has; it is closed after.

    Args:
        mnt_id: the mount's 32-bit id.
    """
    own = str(os.getpid())
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if pid == own:
            continue
        for link in _links(f"/proc/{pid}"):
            try:
                fd = os.open(link, kernel.O_PATH)
            except OSError:
                continue  # the process ended, or is a kernel thread
            try:
                if kernel.fstat(fd).mnt_id == mnt_id:
                    yield fd
            finally:
                os.close(fd)


def _links(process: str) -> list[str]:
    try:
        fds = os.listdir(f"{process}/fd")
    except OSError:
        fds = []
    return [f"{process}/{name}" for name in ("cwd", "root", "exe", *(f"fd/{fd}" for fd in fds))]
