# SPDX-License-Identifier: GPL-2.0-only
"""What processes hold on a mount or a filesystem, as procfs shows it."""

from __future__ import annotations

import os
import stat

from criu_detached import kernel
from criu_detached.filesystems.superblock import type_of
from criu_detached.filesystems.types import MANY_DEVICES
from criu_detached.kernel import mountinfo, tasks
from criu_detached.kernel.devnum import format_dev_of_maps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


def held_files(mnt_id: int) -> Iterator[int]:
    """Yield an O_PATH fd of each file on a mount that some process has; it is closed after.

    Args:
        mnt_id: the mount's 32-bit id.
    """
    for pid in process_ids():
        for fd in _open_links(pid):
            if kernel.fstat(fd).mnt_id == mnt_id:
                yield fd


def held_directories(known: set[int]) -> Iterator[int]:
    """Likewise a directory of each mount that is not known yet, which it is from then on.

    Args:
        known: the 32-bit ids of mounts.
    """
    for pid in process_ids():
        for fd in _open_links(pid):
            facts = kernel.fstat(fd)
            if facts.mnt_id not in known and stat.S_ISDIR(facts.mode):
                known.add(facts.mnt_id)
                yield fd


def is_tree_held(mnt_id: int) -> bool:
    """Tell whether a dumped process has an fd that may be the fd of a tree.

    That is one of its root which has no flag but O_PATH.

    Args:
        mnt_id: of the root of the tree.
    """
    return any(_is_tree(pid, fd, mnt_id) for pid, fd in dumped_fds())


def dumped_fds() -> Iterator[tuple[int, str]]:
    """Yield each fd of each dumped process, by the names that procfs has for them."""
    for pid in dumped_tasks():
        yield from ((pid, fd) for fd in below(pid, "fd"))


def fdinfo(pid: int | str, fd: str) -> list[bytes]:
    """What procfs says of an fd, in lines; none when it is closed."""
    return read(f"/proc/{pid}/fdinfo/{fd}").split(b"\n")


def _is_tree(pid: int, fd: str, mnt_id: int) -> bool:
    lines = [line.partition(b":") for line in fdinfo(pid, fd)]
    fields = {name: value.strip() for name, _, value in lines}
    return (
        int(fields.get(b"mnt_id", b"0")) == mnt_id
        and int(fields[b"flags"], 8) & ~os.O_CLOEXEC == os.O_PATH
        and os.readlink(f"/proc/{pid}/fd/{fd}") == "/"
    )


def files_of(dev: int) -> Iterator[int]:
    """Yield an fd of each file on a filesystem that some process has; it is closed after.

    Args:
        dev: device of its superblock.
    """
    shown = mapped(dev)
    for pid in process_ids():
        maps = "map_files" if shown in read(f"/proc/{pid}/maps") else ""
        for fd in all_files(pid, maps):
            if kernel.fstat(fd).dev == dev:
                yield fd


def holding_processes(mnt_id: int) -> list[int]:
    """Processes that have a file of a mount.

    Args:
        mnt_id: the mount's 32-bit id.
    """
    return [
        pid
        for pid in process_ids()
        if any(kernel.fstat(fd).mnt_id == mnt_id for fd in _open_links(pid))
    ]


def files_of_tasks(dev: int) -> Iterator[tuple[int, str, int]]:
    """Yield each file on a filesystem that a dumped task has.

    Args:
        dev: device of its superblock.

    Returns:
        The task, the link below its directory in procfs ("cwd", "fd/3"), and an O_PATH fd,
        which is closed after.
    """
    for pid in dumped_tasks():
        for link, fd in open_links_of(pid, "map_files"):
            if _is_on(fd, dev):
                yield pid, link, fd


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
    ids = map(int, below(pid, "task"))
    return [tid for tid in ids if tid != pid and not tasks.shares_files(pid, tid)]


def namespaces() -> Iterator[tuple[int, list[int]]]:
    """As of mountinfo, with those that such a thread alone is in."""
    ids = [os.getpid()]
    for pid in process_ids():
        ids += [pid, *threads_apart(pid)]
    return mountinfo.namespaces(ids)


def dumped_tasks() -> Iterator[int]:
    """Yield the ids of the processes that are dumped."""
    return filter(is_traced, process_ids())


def root_task() -> int:
    """The id of the dumped process that is the parent of all others; 0: none is dumped."""
    parents = {pid: _parent(pid) for pid in dumped_tasks()}
    return next((pid for pid, parent in parents.items() if parent not in parents), 0)


def _parent(pid: int) -> int:
    found = read(f"/proc/{pid}/status").partition(b"\nPPid:\t")[2].partition(b"\n")[0]
    return int(found or b"0")


def _open_links(pid: int, more: str = "") -> Iterator[int]:
    """Open, for a moment each, what a process has open and where it is.

    Args:
        pid: the process.
        more: another directory of such links.
    """
    for _, fd in open_links_of(pid, more):
        yield fd


def open_links_of(pid: int, more: str) -> Iterator[tuple[str, int]]:
    """As _open_links, each with its name below the process's directory in procfs.

    Args:
        pid: the process.
        more: another directory of such links, or nothing.
    """
    directories = ("fd", more) if more else ("fd",)
    links = [f"{directory}/{name}" for directory in directories for name in below(pid, directory)]
    for name in ("cwd", "root", "exe", *links):
        try:
            fd = os.open(f"/proc/{pid}/{name}", kernel.O_PATH)
        except OSError:
            continue  # the process ended, or is a kernel thread
        try:
            yield name, fd
        finally:
            os.close(fd)


def all_files(pid: int, more: str = "") -> Iterator[int]:
    """Yield an O_PATH fd of all that a process has open; it is closed after.

    The files that its unix sockets are bound to are among them.

    Args:
        pid: the process.
        more: another directory of links in procfs, "map_files".
    """
    yield from _open_links(pid, more)
    yield from _bound_files(pid)


def files_bound_to(name: bytes) -> Iterator[int]:
    """Yield an O_PATH fd of each file that a socket of a name is bound to; it is closed after.

    Those of dumped processes are left out.

    Args:
        name: as the socket was bound to it.
    """
    for pid in process_ids():
        if not is_traced(pid):
            yield from _bound_files(pid, name)


def _bound_files(pid: int, bound: bytes = b"") -> Iterator[int]:
    """Open, for a moment each, the files that the unix sockets of a process are bound to.

    Args:
        pid: the process.
        bound: the name of those that are wanted; empty: all.
    """
    sockets = [name for name in below(pid, "fd") if _is_socket(f"/proc/{pid}/fd/{name}")]
    if not sockets:
        return
    try:
        pid_fd = _pidfd(pid)
    except OSError:
        return  # it ended
    try:
        for name in sockets:
            try:
                fd = tasks.bound_file(pid_fd, int(name), bound)
            except OSError:
                continue
            try:
                yield fd
            finally:
                os.close(fd)
    finally:
        os.close(pid_fd)


def _pidfd(pid: int) -> int:
    """A pidfd of a process, or from Linux 6.9 on of a thread; raises OSError."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        return os.pidfd_open(pid, os.O_EXCL)  # PIDFD_THREAD


def _is_socket(link: str) -> bool:
    try:
        return os.readlink(link).startswith("socket:")
    except OSError:
        return False  # it was closed


def below(pid: int | str, directory: str) -> list[str]:
    """Names in a directory of a process in procfs; none of a process that ended."""
    try:
        return os.listdir(f"/proc/{pid}/{directory}")
    except OSError:
        return []


def is_traced(pid: int) -> bool:
    """Tell a dumped task: CRIU traces it (compel_wait_task, compel/src/lib/infect.c).

    Args:
        pid: the process.
    """
    return read(f"/proc/{pid}/status").find(b"\nTracerPid:\t%d\n" % os.getpid()) >= 0


def mapped(dev: int) -> bytes:
    """What a mapping of a file shows of its filesystem, proc_pid_maps(5).

    Args:
        dev: device of the superblock.
    """
    return b" " + format_dev_of_maps(dev) + b" "


def _is_on(fd: int, dev: int) -> bool:
    """Tell whether a file is on a superblock; on some it has another device number."""
    if kernel.fstat(fd).dev == dev:
        return True
    try:
        return type_of(fd).has(MANY_DEVICES) and kernel.superblock_dev(fd) == dev
    except OSError:
        return False


def read(path: str) -> bytes:
    """Content of a file in procfs; empty for a process that ended."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""
