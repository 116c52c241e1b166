# SPDX-License-Identifier: GPL-2.0-only
"""What processes hold on a mount or a filesystem: open files, from what was seen of them.

Nothing is opened of other processes but what is on the mount that is asked for.
"""

from __future__ import annotations

import os
import stat
from itertools import chain

from criu_detached import kernel
from criu_detached.dump.observe.directories import climb
from criu_detached.dump.observe.machine import open_bound
from criu_detached.dump.observe.procfs import below, is_end, read
from criu_detached.dump.open_file import OpenFile
from criu_detached.filesystems.superblock import type_of
from criu_detached.filesystems.types import MANY_DEVICES
from criu_detached.kernel import walk
from criu_detached.kernel.fds import Fd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from criu_detached.dump.observe.machine import Machine
    from criu_detached.kernel.walk import Seen


def held_files(machine: Machine, mnt_id: int) -> Iterator[int]:
    """Yield an O_PATH fd of each file on a mount that some process has; it is closed after.

    Those of the dumped tasks come first: others are looked at when these are not enough.

    Args:
        machine: what is around the dump.
        mnt_id: the mount's 32-bit id.
    """
    yield from _opened(machine.held_by_tasks.on(mnt_id=mnt_id), mnt_id)
    yield from _opened(machine.others.walk.on(mnt_id=mnt_id), mnt_id)


def root_by_held(machine: Machine, file: OpenFile) -> Fd | None:
    """The root of a mount, if a directory of it is held.

    Args:
        machine: what is around the dump.
        file: on the mount, looked at first.

    Returns:
        An O_PATH fd, the caller's; None: no directory with a name is held.

    Raises:
        OSError: the directory is not beneath that root.
    """
    for fd in chain([file.fd], held_files(machine, file.stat.mnt_id)):
        held = OpenFile.of(fd)
        if held.is_directory and not held.is_marked_deleted:
            return climb(Fd(os.dup(fd)))
    return None


def held_directories(machine: Machine, known: set[int]) -> Iterator[int]:
    """Yield a directory of each mount that is attached nowhere and dumped tasks have one of.

    Args:
        machine: what is around the dump.
        known: the 32-bit ids of mounts; none of these is looked at, and others are added.
    """
    for seen in machine.held_by_tasks.on():
        if (
            stat.S_ISDIR(seen.mode)
            and seen.mnt_id not in known
            and (seen.mnt_id, seen.dev) not in machine.mounts.pairs
        ):
            for fd in _opened([seen], seen.mnt_id):
                known.add(seen.mnt_id)
                yield fd


def is_tree_held(machine: Machine, mnt_id: int) -> bool:
    """Tell whether a dumped process has an fd that may be the fd of a tree.

    That is one of its root which has no flag but O_PATH.

    Args:
        machine: what is around the dump.
        mnt_id: of the root of the tree.
    """
    return any(
        seen.what == walk.FD and _is_tree(seen) for seen in machine.held_by_tasks.on(mnt_id=mnt_id)
    )


def is_in_tree_of_others(machine: Machine, mnt_id: int) -> bool:
    """Tell whether a mount is in a tree of several that another process has a directory of.

    Args:
        machine: what is around the dump.
        mnt_id: the mount's 32-bit id.
    """
    return mnt_id in machine.others.elsewhere.members


def dumped_fds(machine: Machine) -> Iterator[tuple[int, str]]:
    """Yield each fd of each dumped process, by the names that procfs has for them.

    Args:
        machine: what is around the dump.
    """
    for pid in machine.tasks:
        yield from ((pid, fd) for fd in below(pid, "fd"))


def fdinfo(pid: int | str, fd: str) -> list[bytes]:
    """What procfs says of an fd, in lines; none when it is closed."""
    return read(f"/proc/{pid}/fdinfo/{fd}").split(b"\n")


def _is_tree(seen: Seen) -> bool:
    lines = [line.partition(b":") for line in fdinfo(seen.tid, str(seen.number))]
    fields = {name: value.strip() for name, _, value in lines}
    return int(fields[b"flags"], 8) & ~os.O_CLOEXEC == os.O_PATH and os.readlink(seen.path) == "/"


def files_of(machine: Machine, dev: int) -> Iterator[int]:
    """Yield an fd of each file on a sole-held filesystem; it is closed after.

    Args:
        machine: what is around the dump.
        dev: device of its superblock.
    """
    for seen in machine.held_by_tasks.on(dev=dev):
        for fd in _opened([seen]):
            if kernel.fstat(fd).dev == dev:
                yield fd
    for bound in machine.bound_by_tasks:
        if bound.dev == dev:
            with bound.open() as fd:
                yield fd


def holding_processes(machine: Machine, mnt_id: int) -> list[int]:
    """Processes that have a file of a mount.

    Args:
        machine: what is around the dump.
        mnt_id: the mount's 32-bit id.
    """
    return sorted(
        {
            seen.pid
            for seen_by in (machine.held_by_tasks, machine.others.walk)
            for seen in seen_by.on(mnt_id=mnt_id)
            if not seen.gone
        }
    )


def files_of_tasks(machine: Machine, dev: int) -> Iterator[tuple[int, str, int]]:
    """Yield each file on a filesystem that a dumped task has.

    Args:
        machine: what is around the dump.
        dev: device of its superblock.

    Returns:
        The task, the link below its directory in procfs ("cwd", "fd/3"), and an O_PATH fd,
        which is closed after.
    """
    for seen in machine.held_by_tasks.on():
        if seen.what != walk.SOCKET:
            for fd in _opened([seen]):
                if seen.dev == dev or _is_on(fd, dev):
                    yield seen.tid, seen.link, fd


def who_of_tasks_has(machine: Machine, found: kernel.FileStat) -> Seen | None:
    """What of a dumped task is a file on a mount; None: nothing is.

    Args:
        machine: what is around the dump.
        found: what statx(2) says of the file.
    """
    held = machine.held_by_tasks
    for seen in held.on(mnt_id=found.mnt_id):
        if (seen.dev, seen.ino) == (found.dev, found.ino):
            return seen
    for seen in held.on(mnt_id=0):
        if seen.what == walk.MAPPING and seen.ino == found.ino:
            for fd in _opened([seen], found.mnt_id):
                if kernel.fstat(fd).dev == found.dev:
                    return seen
    return None


def files_bound_to(machine: Machine, name: bytes) -> Iterator[int]:
    """Yield an O_PATH fd of each file that a socket of a name is bound to; it is closed after.

    Those of dumped processes are left out.

    Args:
        machine: what is around the dump.
        name: as the socket was bound to it.
    """
    wanted = walk.name_hash(name)
    for seen in machine.others.walk.on():
        if seen.what == walk.SOCKET and seen.pid and seen.end in (0, wanted) and not seen.gone:
            try:
                fd = open_bound(seen, name)
            except OSError:
                continue  # it is closed, or has another name
            with fd:
                yield fd


def _opened(held: Iterator[Seen] | list[Seen], mnt_id: int = 0) -> Iterator[int]:
    """Open, for a moment each, what was seen.

    Args:
        held: what was seen of files; sockets are left out.
        mnt_id: the mount that they have to be on still; 0: any.
    """
    for seen in held:
        if seen.what == walk.SOCKET or seen.error or seen.gone:
            continue
        try:
            fd = Fd.open(seen.path, kernel.O_PATH)
        except OSError as error:
            if is_end(error):
                continue
            raise
        with fd:
            if not mnt_id or kernel.glance(b"", fd).mnt_id == mnt_id:
                yield fd


def _is_on(fd: int, dev: int) -> bool:
    """Tell whether a file is on a superblock; on some it has another device number."""
    try:
        return type_of(fd).has(MANY_DEVICES) and kernel.superblock_dev(fd) == dev
    except OSError:
        return False
