# SPDX-License-Identifier: GPL-2.0-only
"""Unix sockets that are connected to one outside of the dump (criu dump --ext-unix-sk).

CRIU connects them again by the name that the other one is bound to. Where that is on a detached
mount the name leads nowhere, and a restore would fail.
"""

from __future__ import annotations

import os

from criu_detached import kernel, paths
from criu_detached.dump.observe.processes import files_bound_to
from criu_detached.dump.open_file import OpenFile
from criu_detached.errors import DetachedError
from criu_detached.kernel import walk
from criu_detached.kernel.children import ask_each
from criu_detached.kernel.fds import Fd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.criu.criu import Criu
    from criu_detached.dump.observe.classify import Classifier
    from criu_detached.dump.observe.machine import Machine


def root_of_names(criu: Criu, machine: Machine) -> str:
    """Return the path of the directory that CRIU will follow the names of sockets from.

    That is in the first task's mount namespace, if it is dumped: prep_unix_sk_cwd, criu/sk-unix.c.

    Args:
        criu: CRIU.
        machine: what is around the dump.
    """
    pid = machine.root_task if criu.dumps_mount_namespace() else 0
    return f"/proc/{pid}/root" if pid else "/"


def check_peer(name: bytes, root: str, classifier: Classifier, machine: Machine) -> None:
    """See to it that a restore finds the socket that another one is connected to.

    Args:
        name: that it is bound to.
        root: path of the directory that CRIU will follow that from.
        classifier: tells detached mounts.
        machine: what is around the dump.

    Raises:
        DetachedError: all that have the name are elsewhere, and one is on a detached mount.
    """
    led_to, detached = _led_to(root, name), None
    if _leads_to_socket(led_to, name):
        return
    for fd in files_bound_to(machine, name):
        found = kernel.glance(b"", fd)
        if (found.dev, found.ino) == led_to:
            return
        if _is_ours(fd, classifier):
            detached = found.mnt_id
    if detached is not None:
        raise DetachedError(
            f"that one is outside of the dump, on a detached mount ({detached}), to which"
            " its name does not lead, so it would not be found at restore: bind its directory to"
            " the place (mount --bind), or close the socket"
        )


def _leads_to_socket(led_to: tuple[int, int] | None, name: bytes) -> bool:
    """Tell whether a socket is bound to what its name leads to: so it is, as a rule."""
    if led_to is None:
        return False
    try:
        sockets = walk.sockets_named(name)
    except OSError:
        return False  # the kernel does not tell: all processes are asked
    return any((one.dev, one.ino) == (led_to[0], led_to[1] & 0xFFFFFFFF) for one in sockets)


def _is_ours(fd: int, classifier: Classifier) -> bool:
    """Tell whether a file of others is on a detached mount; its server may not answer."""
    path = f"/proc/{os.getpid()}/fd/{fd}"

    def classify() -> bytes:
        with Fd.open(path, kernel.O_PATH) as opened:
            return b"yes" if classifier.classify(OpenFile.of(opened)).is_ours else b""

    [answer] = ask_each([classify])
    return answer.in_time and bool(answer.data)


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
