# SPDX-License-Identifier: GPL-2.0-only
"""A mount is realised for a moment, while the tasks are still alive: what fails now is refused."""

from __future__ import annotations

import os

from criu_detached import kernel
from criu_detached.filesystems.attributes import attributes_to_change, make_user_namespace
from criu_detached.kernel import namespaces
from criu_detached.kernel.fds import Fd, Fds
from criu_detached.kernel.mounts import mount_attr

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.images.records import Mount


def dry_run(record: Mount, root: int, pid: int) -> None:
    """Clone a mount as the restore will; it is in no namespace's tree, and gone at once.

    Args:
        record: of the mount.
        root: fd of its root in the bind source.
        pid: a process in the mount namespace of that, whose privileges the restore will have;
            0: this process.

    Raises:
        OSError: the kernel refuses it.
    """
    attr_set, attr_clr = attributes_to_change(record)
    with Fds() as used:
        userns = make_user_namespace(record)
        if userns >= 0:
            used.add(userns)
        if not pid:
            with kernel.clone_mount(root) as tree:
                kernel.mount_setattr(tree, attr_set, attr_clr, userns)
            return
        mount_space = used.add(Fd.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY))
        user_space = _user_namespace_of(pid)
        if user_space >= 0:
            used.add(user_space)
        attr = mount_attr(attr_set, attr_clr, userns)
        namespaces.dry_run_clone(mount_space, user_space, root, attr)


def _user_namespace_of(pid: int) -> int:
    """An fd of a process's user namespace; -1 when that is this process's own."""
    path = f"/proc/{pid}/ns/user"
    if os.stat(path).st_ino == os.stat("/proc/self/ns/user").st_ino:
        return -1
    return Fd.open(path, os.O_RDONLY)
