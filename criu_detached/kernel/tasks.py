# SPDX-License-Identifier: GPL-2.0-only
"""What other processes and threads have open, and the unix sockets of this one."""

from __future__ import annotations

import os

from criu_detached._kernel import lib
from criu_detached.kernel.calls import checked, checked_fd
from criu_detached.kernel.fds import Fd

_KCMP_FILES, _KCMP_FS = 2, 3  # linux/kcmp.h


def fd_of_process(pid: int, number: int) -> Fd:
    """Duplicate an fd of another process: pidfd_getfd(2), Linux 5.6; it is the caller's.

    Args:
        pid: the process.
        number: its fd.

    Raises:
        OSError: it has ended or has no such fd, or may not be looked into.
    """
    with Fd(os.pidfd_open(pid)) as process:
        return checked_fd(lib.sys_pidfd_getfd(process, number), "pidfd_getfd")


def bound_file(pid_fd: int, fd: int, name: bytes = b"") -> Fd:
    """Open the file that a unix socket of another process is bound to (O_PATH).

    Args:
        pid_fd: the process, as pidfd_open(2) gives it.
        fd: the socket, in that process.
        name: that it has to be bound to; empty: any.

    Raises:
        OSError: it is none, or bound to no file or another name, or the process has ended.
    """
    found = lib.sys_bound_file(pid_fd, fd, name)
    return checked_fd(found, "pidfd_getfd or SIOCUNIXFILE")


def shares_files(tid: int, other: int) -> bool:
    """Tell whether two threads have the same fds, working directory and root.

    Args:
        tid: one of them.
        other: the other one.

    Returns:
        False also where the kernel does not tell.

    Source: kcmp(2), KCMP_FILES and KCMP_FS.
    """
    return not any(lib.sys_kcmp(tid, other, what) for what in (_KCMP_FILES, _KCMP_FS))


def has_peer(end: bytes) -> bool:
    """Tell whether a unix socket of this process is connected to one whose name ends so.

    Args:
        end: of the name that the other socket is bound to.

    Raises:
        OSError: the fds of this process cannot be listed.
    """
    return bool(checked(lib.sys_has_peer(end), "/proc/self/fd"))
