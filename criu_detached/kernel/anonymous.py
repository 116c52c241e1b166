# SPDX-License-Identifier: GPL-2.0-only
"""Anonymous mounts: the kernel clones one in the very namespace alone that it was made in."""

from __future__ import annotations

from criu_detached._kernel import lib
from criu_detached.kernel import statmount
from criu_detached.kernel.calls import checked_fd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.kernel.fds import Fd
    from criu_detached.kernel.statmount import StatMount


def clone_in_one_of(ns_fds: list[int], fd: int) -> Fd:
    """Clone an anonymous mount, by a child in one of some mount namespaces; else as clone_mount().

    Args:
        ns_fds: the namespaces; the mount was made in one of them.
        fd: what is to be the root of the clone. What is mounted below is left out.

    Raises:
        OSError: EINVAL when the mount is cloned in none of them.
    """
    result = lib.sys_clone_in_one_of(ns_fds, len(ns_fds), fd)
    return checked_fd(result, "clone an anonymous mount")


def view_clone(ns_fds: list[int], fd: int, mask: int) -> list[StatMount]:
    """Attach a clone of an anonymous mount in a child's private namespace, and look at it.

    Args:
        ns_fds: mount namespaces; the mount was made in one of them.
        fd: what is to be the root of the clone.
        mask: STATMOUNT_* bits that are wanted.

    Returns:
        What statmount(2) says of the clone, and then of its children, parents first.

    Raises:
        OSError: EINVAL when the mount is cloned in none of them.
    """
    count, raw = statmount.ask(
        lambda buf, size: lib.sys_view_clone(ns_fds, len(ns_fds), fd, mask, buf, size),
        "clone and attach an anonymous mount",
    )
    return statmount.answers(raw, count)
