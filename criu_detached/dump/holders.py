# SPDX-License-Identifier: GPL-2.0-only
"""What processes, and the kernel, hold on a mount or a filesystem."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time

from criu_detached import kernel, mountinfo
from criu_detached.dump import layers, treeview
from criu_detached.dump.sources import MANY_DEVICES
from criu_detached.errors import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_LOOP_GET_STATUS64 = 0x4C05  # linux/loop.h
_LOOP_INFO64_SIZE = 232  # struct loop_info64; lo_device is its first field

_PAUSES = (0, 0.001, 0.01, 0.1)  # seconds


def held_files(mnt_id: int) -> Iterator[int]:
    """Yield an O_PATH fd of each file on a mount that some process has; it is closed after.

    Args:
        mnt_id: the mount's 32-bit id.
    """
    for pid in processes():
        for fd in _open_links(pid):
            if kernel.fstat(fd).mnt_id == mnt_id:
                yield fd


def held_directories(known: set[int]) -> Iterator[int]:
    """Likewise a directory of each mount that is not known yet, which it is from then on.

    Args:
        known: the 32-bit ids of mounts.
    """
    for pid in processes():
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
    mapped = _mapped(dev)
    for pid in processes():
        maps = "map_files" if mapped in read(f"/proc/{pid}/maps") else ""
        for fd in _all_files(pid, maps):
            if kernel.fstat(fd).dev == dev:
                yield fd


def holding_processes(mnt_id: int) -> list[int]:
    """Processes that have a file of a mount.

    Args:
        mnt_id: the mount's 32-bit id.
    """
    return [
        pid
        for pid in processes()
        if any(kernel.fstat(fd).mnt_id == mnt_id for fd in _open_links(pid))
    ]


def outside_holder(dev: int) -> str | None:
    """Name somebody who keeps a filesystem alive besides the dumped tasks.

    Args:
        dev: device of its superblock.

    Returns:
        A holder, for a message; None when none is to be found. What procfs does not show
        (files in flight in the sockets of others, registered with io_uring) is not seen.

    Raises:
        OSError: what has to be looked at cannot be.
    """
    filesystem = _Filesystem(dev)
    for pid in processes():
        if not _is_traced(pid) and _keeps(pid, filesystem):
            return f"process {pid}"
    return _loop_device_on(dev) or layers.overlay_on(dev)


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


def attached_mount(dev: int) -> str | None:
    """Say where a filesystem is mounted, in whatever namespace; None: nowhere.

    Args:
        dev: device of its superblock.
    """
    for _, pids in mountinfo.namespaces():
        for pid, mount in mountinfo.mounts_of_namespace(pids or [os.getpid()]):
            if mount.dev == dev:
                return f"{quote(mount.mountpoint)} in the mount namespace of process {pid}"
    try:
        for ns_id in kernel.mount_namespaces():
            if dev in kernel.superblocks_in_ns(ns_id):
                return f"a place in mount namespace {ns_id}, which no process lives in"
    except OSError:
        pass  # before Linux 6.12, and in a PID namespace
    return None


def processes() -> Iterator[int]:
    """Yield the ids of all processes but this one."""
    own = os.getpid()
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != own:
            yield int(name)


def dumped_tasks() -> Iterator[int]:
    """Yield the ids of the processes that are dumped."""
    return filter(_is_traced, processes())


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


def _all_files(pid: int, more: str = "") -> Iterator[int]:
    """As _open_links, and the files that its sockets are bound to."""
    yield from _open_links(pid, more)
    yield from _bound_files(pid)


def _bound_files(pid: int) -> Iterator[int]:
    """Open, for a moment each, the files that the unix sockets of a process are bound to."""
    sockets = [name for name in below(pid, "fd") if _is_socket(f"/proc/{pid}/fd/{name}")]
    if not sockets:
        return
    try:
        pid_fd = os.pidfd_open(pid)
    except OSError:
        return  # it ended
    try:
        for name in sockets:
            try:
                fd = kernel.bound_file(pid_fd, int(name))
            except OSError:
                continue
            try:
                yield fd
            finally:
                os.close(fd)
    finally:
        os.close(pid_fd)


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


def _is_traced(pid: int) -> bool:
    """Tell the dumped tasks: CRIU traces them (compel_wait_task, compel/src/lib/infect.c)."""
    return read(f"/proc/{pid}/status").find(b"\nTracerPid:\t%d\n" % os.getpid()) >= 0


def _keeps(pid: int, filesystem: _Filesystem) -> bool:
    """Tell a holder from one that only looks, as another dump on this machine does."""
    for pause in _PAUSES:
        time.sleep(pause)
        if not filesystem.is_held_by(pid):
            return False
    return True


def _mapped(dev: int) -> bytes:
    """What a mapping of a file shows of its filesystem, proc_pid_maps(5)."""
    return b" %02x:%02x " % (os.major(dev), os.minor(dev))


class _Filesystem:
    """A superblock, for the question who holds it."""

    def __init__(self, dev: int) -> None:
        self._dev = dev
        self._attached = mountinfo.attached_ids()
        self._trees: dict[int, bool] = {}  # mounts that directories are on: do they lead to it?

    def is_held_by(self, pid: int) -> bool:
        """Tell whether a process has a file of it, or one that leads to it."""
        if any(self._is_held_through(fd) for fd in _all_files(pid)):
            return True
        return _mapped(self._dev) in read(f"/proc/{pid}/maps")

    def _is_held_through(self, fd: int) -> bool:
        facts = kernel.fstat(fd)
        if facts.dev == self._dev:
            return True
        try:
            if kernel.statmount_by_fd(fd, kernel.STATMOUNT_SB_BASIC).sb_dev == self._dev:
                return True
        except OSError:
            pass  # before Linux 7.0, and what no mount shows
        if facts.mnt_id in self._attached:
            return False
        if stat.S_ISDIR(facts.mode):
            if facts.mnt_id not in self._trees:
                self._trees[facts.mnt_id] = self._is_in_tree(fd)
            return self._trees[facts.mnt_id]
        # On such filesystems a file does not have the superblock's device number.
        return kernel.fstatfs(fd).magic in MANY_DEVICES and self._is_seen(fd)

    def _is_in_tree(self, directory: int) -> bool:
        """Tell whether it is mounted in the anonymous tree of a directory."""
        try:
            top = treeview.climb_tree(directory)
        except OSError:
            return False  # it is deleted
        try:
            return self._is_seen(top)
        finally:
            os.close(top)

    def _is_seen(self, fd: int) -> bool:
        """Tell whether an anonymous mount, or one below, is of it."""
        try:
            return any(mount.sb_dev == self._dev for mount in treeview.view(fd))
        except OSError:
            return False  # a deleted file


def _is_on(fd: int, dev: int) -> bool:
    """Tell whether a file is on a superblock; on some it has another device number."""
    if kernel.fstat(fd).dev == dev:
        return True
    try:
        return kernel.fstatfs(fd).magic in MANY_DEVICES and kernel.superblock_dev(fd) == dev
    except OSError:
        return False


def read(path: str) -> bytes:
    """Content of a file in procfs; empty for a process that ended."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def _loop_device_on(dev: int) -> str | None:
    for name in os.listdir("/sys/block") if kernel.is_directory("/sys/block") else []:
        if not name.startswith("loop") or not kernel.is_directory(f"/sys/block/{name}/loop"):
            continue
        try:
            info = _loop_info(f"/dev/{name}")
        except OSError as error:
            if error.errno == errno.ENXIO:
                continue  # by now it has no file
            raise
        if _huge_decode_dev(int.from_bytes(info[:8], "little")) == dev:
            return f"loop device {name}"
    return None


def _loop_info(device: str) -> bytes:
    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return fcntl.ioctl(fd, _LOOP_GET_STATUS64, bytes(_LOOP_INFO64_SIZE))
    finally:
        os.close(fd)


def _huge_decode_dev(number: int) -> int:
    """include/linux/kdev_t.h, new_decode_dev."""
    major = (number & 0xFFF00) >> 8
    return os.makedev(major, (number & 0xFF) | ((number >> 12) & 0xFFF00))
