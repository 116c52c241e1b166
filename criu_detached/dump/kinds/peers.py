# SPDX-License-Identifier: GPL-2.0-only
"""Unix sockets that are connected to one outside of the dump (criu dump --ext-unix-sk).

CRIU connects them again by the name that the other one is bound to. Where that is on a detached
mount the name leads nowhere, and a restore would fail.
"""

from __future__ import annotations

from criu_detached import kernel, paths
from criu_detached.dump.observe.processes import files_bound_to, root_task
from criu_detached.dump.open_file import OpenFile
from criu_detached.errors import DetachedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.criu.criu import Criu
    from criu_detached.dump.observe.classify import Classifier


def root_of_names(criu: Criu) -> str:
    """Return the path of the directory that CRIU will follow the names of sockets from.

    That is in the first task's mount namespace, if it is dumped: prep_unix_sk_cwd, criu/sk-unix.c.

    Args:
        criu: CRIU.
    """
    pid = root_task() if criu.dumps_mount_namespace() else 0
    return f"/proc/{pid}/root" if pid else "/"


def check_peer(name: bytes, root: str, classifier: Classifier) -> None:
    """See to it that a restore finds the socket that another one is connected to.

    Args:
        name: that it is bound to.
        root: path of the directory that CRIU will follow that from.
        classifier: tells detached mounts.

    Raises:
        DetachedError: all that have the name are elsewhere, and one is on a detached mount.
    """
    led_to, detached = _led_to(root, name), None
    for fd in files_bound_to(name):
        try:
            file = OpenFile.of(fd)
        except OSError:
            continue  # its server is gone
        if (file.stat.dev, file.stat.ino) == led_to:
            return
        if classifier.classify(file).is_ours:
            detached = file.stat.mnt_id
    if detached is not None:
        raise DetachedError(
            f"that one is outside of the dump, on a detached mount ({detached}), to which"
            " its name does not lead, so it would not be found at restore: bind its directory to"
            " the place (mount --bind), or close the socket"
        )


def _led_to(root: str, name: bytes) -> tuple[int, int] | None:
    """Device and inode of what a name leads to; a relative one leads nowhere."""
    if not name.startswith(b"/"):
        return None
    try:
        with paths.open_from_root(root, name) as fd:
            found = kernel.fstat(fd)
    except OSError:
        return None
    return found.dev, found.ino
