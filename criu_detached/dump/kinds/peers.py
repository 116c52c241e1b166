# SPDX-License-Identifier: GPL-2.0-only
"""Unix sockets that are connected to one outside of the dump (criu dump --ext-unix-sk).

CRIU connects them again by the name that the other one is bound to. Where that is on a detached
mount the name leads nowhere, and a restore would fail.
"""

from __future__ import annotations

import os

from criu_detached import kernel, paths
from criu_detached.dump.observe.processes import files_bound_to
from criu_detached.errors import DetachedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from criu_detached.kernel import FileStat


def check_peer(name: bytes, root: str, is_detached: Callable[[int, FileStat], bool]) -> None:
    """See to it that a restore finds the socket that another one is connected to.

    Args:
        name: that it is bound to.
        root: path of the directory that CRIU will start from, to follow that.
        is_detached: tells whether an open file is on a detached mount.

    Raises:
        DetachedError: all that have the name are elsewhere, and one is on a detached mount.
    """
    led_to, detached = _led_to(root, name), None
    for fd in files_bound_to(name):
        try:
            facts = kernel.fstat(fd)
        except OSError:
            continue  # its server is gone
        if (facts.dev, facts.ino) == led_to:
            return
        if is_detached(fd, facts):
            detached = facts
    if detached is not None:
        raise DetachedError(
            f"that one is outside of the dump, on a detached mount ({detached.mnt_id}), to which"
            " its name does not lead, so it would not be found at restore: bind its directory to"
            " the place (mount --bind), or close the socket"
        )


def _led_to(root: str, name: bytes) -> tuple[int, int] | None:
    """Device and inode of what a name leads to; a relative one leads nowhere."""
    if not name.startswith(b"/"):
        return None
    try:
        fd = paths.open_from_root(root, name)
    except OSError:
        return None
    try:
        facts = kernel.fstat(fd)
    except OSError:
        return None
    finally:
        os.close(fd)
    return facts.dev, facts.ino
