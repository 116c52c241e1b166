# SPDX-License-Identifier: GPL-2.0-only
"""The dump, terminals: what CRIU could not restore, or not as they were."""

from __future__ import annotations

import os

from criu_detached import kernel, paths
from criu_detached.dump.observe.processes import dumped_fds, fdinfo
from criu_detached.errors import DetachedError
from criu_detached.filesystems.superblock import type_of
from criu_detached.filesystems.types import DEVPTS
from criu_detached.kernel.fds import Fd
from criu_detached.terminals import is_master, is_slave

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.dump.observe.machine import Machine
    from criu_detached.filesystems.types import FilesystemType
    from criu_detached.kernel import FileStat


def is_left_to_shell_job(found: FileStat, machine: Machine) -> bool:
    """Tell a terminal that CRIU may dump without its file: that of a shell job.

    With --shell-job it gives the task another terminal (pty_open_unpaired_slave, criu/tty.c), if
    the master of this one is held by nobody whom it dumps. It tells a plugin nothing of the option.

    Args:
        found: stat of any file.
        machine: what is around the dump.
    """
    if not is_slave(found) or not found.nlink:
        return False
    number = os.minor(found.rdev)
    return not any(number in _master_numbers(pid, fd) for pid, fd in dumped_fds(machine))


def refuse_terminal(
    path: bytes, found: FileStat, fs_type: FilesystemType, machine: Machine
) -> None:
    """Refuse what would not be the same terminal again.

    Args:
        path: of a terminal, beneath its mount's root.
        found: stat of it.
        fs_type: that it is on.
        machine: what is around the dump.

    Raises:
        DetachedError: it says why.
    """
    if not is_master(found) and not is_slave(found):
        return
    if fs_type is not DEVPTS:
        raise DetachedError(
            "it is a terminal that was opened through a device node outside of devpts, which shows"
            " no devpts beside it any more: open it by pts/ptmx, or close it"
        )
    if path == paths.ROOT:
        raise DetachedError(
            "it is a terminal that is mounted by itself, and there is none to mount before the"
            " terminal is restored: close it, or mount the devpts that it is in"
        )
    _refuse_mixed(machine)


def _refuse_mixed(machine: Machine) -> None:
    """Refuse two terminals of one number, which CRIU takes for one (tty_gen_id, criu/tty.c)."""
    found: dict[int, tuple[int, bool]] = {}
    for pid, fd in dumped_fds(machine):
        for number, devpts, paired in _ends(pid, fd):
            if found.setdefault(number, (devpts, paired)) != (devpts, paired):
                raise DetachedError(
                    f"there are two terminals with the number {number} (of two devpts, or one of"
                    " them has lost its master), which CRIU takes for one: close one"
                )


def _ends(pid: int, fd: str) -> list[tuple[int, int, bool]]:
    """What an fd is an end of: number, device of the devpts, and whether the master is there.

    A master that was opened outside of devpts does not show which one it is of.
    """
    try:
        file = Fd.open(f"/proc/{pid}/fd/{fd}", kernel.O_PATH)
    except OSError:
        return []  # it ended
    with file:
        found = kernel.fstat(file)
        if is_slave(found):
            return [(os.minor(found.rdev), found.dev, found.nlink > 0)]
        if is_master(found) and type_of(file) is DEVPTS:
            return [(number, found.dev, True) for number in _master_numbers(pid, fd)]
    return []


def _master_numbers(pid: int, fd: str) -> list[int]:
    """The number of a terminal, by its master (pty_show_fdinfo, drivers/tty/pty.c)."""
    lines = fdinfo(pid, fd)
    return [int(line.split()[1]) for line in lines if line.startswith(b"tty-index:")]
