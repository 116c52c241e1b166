# SPDX-License-Identifier: GPL-2.0-only
"""A look at what tasks have open, mapped and bound, and at what is mounted: plugin/kernel/walk.h.

It is in C, for there may be hundreds of thousands of fds, and they are asked without any question
to their filesystems. What was seen stays where C has written it; an object is made of it on need.
"""

from __future__ import annotations

import os

from criu_detached import kernel
from criu_detached._kernel import ffi, lib
from criu_detached.kernel.calls import checked
from criu_detached.once import once

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from criu_detached import _kernel

# What a task may have, or what of it could not be looked at.
CWD, ROOT, EXE, FD, MAPPING, SOCKET = map(ord, "crefms")
ALL_FDS, ALL_MAPPINGS, ALL_THREADS, WHOLE_TASK = map(ord, "dMtp")

_NAMES = {CWD: "cwd", ROOT: "root", EXE: "exe"}
_TENTHS = 10  # of a second

# clone3(2) may give any; a table of them is cheap.
_MANY_SOCKETS = 1 << 12


class Seen:
    """Something that a task has; or, with an error, what could not be looked at."""

    __slots__ = (
        "dev",
        "end",
        "error",
        "gone",
        "ino",
        "mnt_id",
        "mode",
        "number",
        "pid",
        "socket",
        "tid",
        "what",
    )

    def __init__(self, found: _kernel.Seen) -> None:
        self.what: int = found.what
        self.pid: int = found.pid  # 0: a socket that was found with no task
        self.tid: int = found.tid  # the main thread's, or of one with something for itself
        self.number: int = found.number  # fd, or where a mapping starts
        self.end: int = found.end  # where it ends; name_hash() of a socket's name
        self.dev: int = found.dev  # as st_dev; the superblock's of mappings and sockets
        self.ino: int = found.ino  # of a socket: cut to 32 bits
        self.socket: int = found.socket  # inode of a socket; ino is that of its file
        self.mnt_id: int = found.mnt_id  # 0: not told
        self.mode: int = found.mode  # likewise
        self.gone: int = found.gone  # it was there, and was not when it was looked for again
        self.error: int = found.error

    @property
    def link(self) -> str:
        """Where procfs has it, below the directory of the task."""
        if self.what == MAPPING:
            return f"map_files/{self.number:x}-{self.end:x}"
        return _NAMES.get(self.what) or f"fd/{self.number}"

    @property
    def path(self) -> str:
        """Where procfs has it."""
        return f"/proc/{self.tid}/{self.link}"


class Walk:
    """What a look at tasks has shown."""

    def __init__(self, walk: _kernel.Walk) -> None:
        """Take over what C has filled in; close() frees it."""
        self._walk = walk
        self.looks: int = walk.looks  # at tasks
        self._groups: dict[tuple[int, int], tuple[int, int]] = {}  # by device and mount id
        start, count = 0, walk.count
        while start < count:
            first = walk.seen[start]
            end = lib.sys_end_of_group(walk.seen, count, start)
            self._groups[first.dev, first.mnt_id] = start, end
            start = end

    def close(self) -> None:
        """Free the memory."""
        self._groups = {}
        lib.sys_free_walk(self._walk)

    def on(self, *, dev: int | None = None, mnt_id: int | None = None) -> Iterator[Seen]:
        """Yield what was seen on a superblock or on a mount, or all; by tasks in each mount.

        Args:
            dev: device.
            mnt_id: the mount's 32-bit id.
        """
        for (device, mount), (start, end) in list(self._groups.items()):
            if dev in (None, device) and mnt_id in (None, mount):
                for index in range(start, end):
                    yield Seen(self._walk.seen[index])

    def mounts(self) -> list[tuple[int, int]]:
        """The device and the id of each mount that something was seen on; 0: not told."""
        return list(self._groups)


class AttachedMount:
    """A row of the table of mounts."""

    __slots__ = ("dev", "id", "magic", "mnt_id", "ns_id")

    def __init__(self, row: _kernel.MountRow) -> None:
        self.id: int = row.id  # the unique one; 0: not told
        self.ns_id: int = row.ns_id  # of its namespace
        self.dev: int = row.dev  # of the superblock
        self.mnt_id: int = row.mnt_id
        self.magic: int = row.magic


class MountTable:
    """The attached mounts of all mount namespaces at one moment."""

    def __init__(self, rows: _kernel.MountRow, count: int) -> None:
        """Take over rows of C, which have to stay in place."""
        self.rows = rows
        self.count = count
        self.devs = ffi.new("uint64_t[]", count)
        self.nr_devs = lib.sys_sort_mounts(rows, count, self.devs)
        self.devices = {int(self.devs[index]) for index in range(self.nr_devs)}

    @classmethod
    def read(cls, many_devices: Iterable[int]) -> MountTable:
        """Ask the kernel for the mounts of each namespace, whether a process lives in it or not.

        Args:
            many_devices: magic numbers of the filesystems whose files may show other device
                numbers than their superblock.

        Raises:
            OSError: ENOTTY before Linux 6.12, EPERM in a PID namespace.

        Source: listmount(2) and statmount(2), ioctl_nsfs(2).
        """
        rows, count = ffi.new("struct mount_row **"), ffi.new("size_t *")
        many, nr_many = _numbers("uint32_t[]", many_devices)
        result = lib.sys_all_mounts(many, nr_many, rows, count)
        checked(result, "walk over the mount namespaces")
        return cls(ffi.gc(rows[0], lib.sys_free_mounts), int(count[0]))

    @classmethod
    def of(cls, mounts: Iterable[tuple[int, int, bool]]) -> MountTable:
        """Make a table of what else is known of mounts.

        Args:
            mounts: 32-bit id, device of the superblock, and whether its files may show others.
        """
        listed = list(mounts)
        rows = ffi.new("struct mount_row[]", len(listed))
        for row, (mnt_id, dev, many) in zip(rows, listed, strict=True):
            row.mnt_id, row.dev, row.many_devices = mnt_id, dev, many
        return cls(rows, len(listed))

    @once
    def pairs(self) -> set[tuple[int, int]]:
        """Id and device of each mount."""
        return {(mount.mnt_id, mount.dev) for mount in self}

    def __iter__(self) -> Iterator[AttachedMount]:
        """Yield the mounts, by their 32-bit ids."""
        return (AttachedMount(self.rows[index]) for index in range(self.count))

    def of_superblock(self, dev: int) -> list[AttachedMount]:
        """The mounts of a superblock."""
        return [mount for mount in self if mount.dev == dev] if dev in self.devices else []


class Walker:
    """What all walks of one process leave out: the kernel's own superblocks."""

    def __init__(self, patience: int = 5) -> None:
        """Find them.

        Args:
            patience: seconds that a look at one thing may take.
        """
        self._internal = sorted(_internal_devices())
        self._sockets = _device_of_sockets()
        self._patience = patience

    def look_at_tasks(self, pids: Iterable[int]) -> Walk:
        """Look at all that some tasks have, which do not run.

        Args:
            pids: their process ids.

        Raises:
            OSError: there is no memory.
        """
        return self._look(lib.sys_look_at_tasks, pids, None)

    def look_at_others(self, left_out: Iterable[int], attached: MountTable) -> Walk:
        """Look at all other tasks: at what they have that is on no attached mount.

        Sockets are told if they are bound to a file, be that where it may. Who is forked, or is
        given something meanwhile, is looked at too. A child does it, in case that a task hangs.

        Args:
            left_out: process ids, besides the one of this process.
            attached: the mounts that are of no interest.

        Raises:
            OSError: there is no memory, or no looking at the tasks; ETIMEDOUT: several hang.
        """
        return self._look(lib.sys_look_at_others, left_out, attached)

    def look_for(self, dev: int) -> Walk:
        """Look at all other tasks: at what they have on one superblock, mappings aside.

        Args:
            dev: its device; it may be one that is left out else.

        Raises:
            OSError: as look_at_others.
        """
        return self._look(lib.sys_look_at_others, (), None, only=dev)

    def _look(
        self,
        look: Callable[[_kernel.Walk], int],
        pids: Iterable[int],
        attached: MountTable | None,
        only: int = 0,
    ) -> Walk:
        walk = ffi.new("struct walk *")
        kept = _numbers("int32_t[]", pids)
        walk.pids, walk.nr_pids = kept
        internal = _numbers("uint64_t[]", [dev for dev in self._internal if dev != only])
        walk.internal, walk.nr_internal = internal
        walk.sockets, walk.only = self._sockets, only
        walk.patience = self._patience * _TENTHS
        if attached is not None:
            walk.mounts, walk.nr_mounts = attached.rows, attached.count
            walk.devs, walk.nr_devs = attached.devs, attached.nr_devs
        result = look(walk)
        if result < 0:
            lib.sys_free_walk(walk)
        checked(result, "look at the processes")
        return Walk(walk)


def _numbers(kind: str, numbers: Iterable[int]) -> tuple[_kernel.Array, int]:
    """An ascending array of C."""
    ascending = sorted(numbers)
    return ffi.new(kind, ascending), len(ascending)


def _internal_devices() -> set[int]:
    """The devices of superblocks that the kernel has for itself, by a file of each."""
    devices = {_device_of_sockets()}
    for make in (_pipe, _anonymous_inode, _memory, _namespace, _process):
        try:
            fd = make()
        except OSError:
            continue  # none can be made here: what others have of it is looked at in vain
        devices.add(kernel.fstat(fd).dev)
        os.close(fd)
    return devices


def _pipe() -> int:
    reader, writer = os.pipe()
    os.close(writer)
    return reader


def _anonymous_inode() -> int:
    return os.eventfd(0, os.EFD_CLOEXEC)


def _memory() -> int:
    return os.memfd_create("criu-detached")


def _namespace() -> int:
    return os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)


def _process() -> int:
    return os.pidfd_open(os.getpid())


def _device_of_sockets() -> int:
    fd = checked(lib.sys_socket(), "socket")
    try:
        return kernel.fstat(fd).dev
    finally:
        os.close(fd)


def anonymous_inodes() -> int:
    """The device of the files that stand for something else: inotify, fanotify and so on."""
    fd = _anonymous_inode()
    try:
        return kernel.fstat(fd).dev
    finally:
        os.close(fd)


def name_hash(name: bytes) -> int:
    """What is seen of the name that a socket is bound to."""
    return int(lib.sys_name_hash(name, len(name)))


def sockets_named(name: bytes) -> list[Seen]:
    """The unix sockets of this network namespace that are bound to a file by a name.

    Args:
        name: as they were bound.

    Raises:
        OSError: the kernel does not tell.

    Source: sock_diag(7), UNIX_DIAG_VFS.
    """
    found = ffi.new("struct seen[]", _MANY_SOCKETS)
    count = checked(
        lib.sys_sockets_named(name, len(name), found, _MANY_SOCKETS), "NETLINK_SOCK_DIAG"
    )
    return [Seen(found[index]) for index in range(count)]


def may_trace(pid: int) -> bool:
    """Tell whether this process may be the tracer of another one: it is that, or its parent.

    Args:
        pid: the other process.

    Source: waitid(2), ECHILD.
    """
    return bool(lib.sys_may_trace(pid))
