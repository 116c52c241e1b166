# SPDX-License-Identifier: GPL-2.0-only
"""Processes and threads by their ids, and what procfs says of one. Only these errors are an end."""

from __future__ import annotations

import errno
import os

from criu_detached.kernel import mountinfo, namespaces, tasks
from criu_detached.kernel.fds import Fd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


def namespaces_of_processes() -> Iterator[tuple[int, list[int]]]:
    """Yield inode and tasks of each mount namespace that a process or a thread lives in."""
    own = os.getpid()
    ids = [own]
    for pid in process_ids():
        ids += [pid, *threads_apart(pid)]
    for inode, pids in mountinfo.namespaces(ids):
        yield inode, pids or [own]


def namespace_of(pid: int) -> int:
    """The id of the mount namespace of a task (Linux 6.12); 0: it ended."""
    try:
        with Fd.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY) as fd:
            return namespaces.mount_ns_id(fd)
    except OSError as error:
        if is_end(error):
            return 0
        raise


def tasks_in(ns_id: int) -> list[int]:
    """The tasks that live in a mount namespace.

    Args:
        ns_id: its id.
    """
    spaces = namespaces_of_processes()
    return next((pids for _, pids in spaces if namespace_of(pids[0]) == ns_id), [])


def process_ids() -> Iterator[int]:
    """Yield the ids of all processes but this one."""
    own = os.getpid()
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != own:
            yield int(name)


def threads_apart(pid: int) -> list[int]:
    """Ids of the threads of a process that have not all that its main thread has.

    They have fds, or a working directory and a root, for themselves, or the main thread ended.
    procfs has a directory for each of them, as for a process.

    Args:
        pid: the process.
    """
    try:
        ids = [int(name) for name in below(pid, "task")]
    except PermissionError:
        return []  # the process itself may not be looked at either
    return [tid for tid in ids if tid != pid and not tasks.shares_files(pid, tid)]


def is_traced(pid: int) -> bool:
    """Tell a dumped task: CRIU traces it (compel_wait_task, compel/src/lib/infect.c).

    Args:
        pid: the process.
    """
    return field_of(read(f"/proc/{pid}/status"), b"TracerPid") == b"%d" % os.getpid()


def parent_of(pid: int) -> int:
    """The id of a process's parent; 0: the process ended."""
    return int(field_of(read(f"/proc/{pid}/status"), b"PPid") or b"0")


def field_of(status: bytes, name: bytes) -> bytes:
    """A field of /proc/PID/status; empty: it is not there."""
    return status.partition(b"\n%s:\t" % name)[2].partition(b"\n")[0]


def is_end(error: OSError) -> bool:
    """Tell the errors that say that a process, or what it had, is gone."""
    return error.errno in _ENDED


def below(pid: int | str, directory: str) -> list[str]:
    """Names in a directory of a process in procfs; none of a process that ended."""
    try:
        return os.listdir(f"/proc/{pid}/{directory}")
    except OSError as error:
        if error.errno in _ENDED:
            return []
        raise


def read(path: str) -> bytes:
    """Content of a file in procfs; empty for a process that ended."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        if error.errno in _ENDED:
            return b""
        raise


# All else is no sign of an end.
_ENDED = {errno.ENOENT, errno.ESRCH}
