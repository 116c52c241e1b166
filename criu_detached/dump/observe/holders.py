# SPDX-License-Identifier: GPL-2.0-only
"""Who else holds a filesystem that no attached mount shows: processes, loop devices, overlays."""

from __future__ import annotations

import errno
import os
import stat
import time

from criu_detached import kernel
from criu_detached.dump.observe import overlays, processes, trees
from criu_detached.errors import quote
from criu_detached.filesystems.superblock import type_of
from criu_detached.filesystems.types import MANY_DEVICES
from criu_detached.kernel import mountinfo, namespaces, statmount
from criu_detached.kernel.devnum import huge_decode_dev
from criu_detached.kernel.fds import Fd
from criu_detached.kernel.loop import loop_status

_PAUSES = (0, 0.001, 0.01, 0.1)  # seconds


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
    for pid in processes.process_ids():
        if processes.is_traced(pid):
            continue
        if _keeps(pid, filesystem):
            return f"process {pid}"
        for tid in processes.threads_apart(pid):
            if _keeps(tid, filesystem):
                return f"thread {tid} of process {pid}"
    # Overlays last: who mounts one may let go of its layer only then.
    return _loop_device_on(dev) or overlays.overlay_on(dev)


def attached_mount(dev: int) -> str | None:
    """Say where a filesystem is mounted, in whatever namespace; None: nowhere.

    Args:
        dev: device of its superblock.
    """
    ours = os.stat("/proc/self/ns/mnt").st_ino
    for ns, pids in processes.namespaces():
        for pid, mount in mountinfo.mounts_of_namespace(pids or [os.getpid()]):
            if mount.dev == dev:
                other = f"in the mount namespace of process {pid}"
                where = "where criu runs" if ns == ours else other
                return f"{quote(mount.mountpoint)} {where}"
    try:
        for ns_id in namespaces.mount_ns_ids():
            if dev in statmount.superblocks_in_ns(ns_id):
                return f"a place in mount namespace {ns_id}, which no process lives in"
    except OSError:
        pass  # before Linux 6.12, and in a PID namespace
    return None


def _keeps(pid: int, filesystem: _Filesystem) -> bool:
    """Tell a holder from one that only looks, as another dump on this machine does."""
    for pause in _PAUSES:
        time.sleep(pause)
        if not filesystem.is_held_by(pid):
            return False
    return True


class _Filesystem:
    """A superblock, for the question who holds it."""

    def __init__(self, dev: int) -> None:
        self._dev = dev
        self._attached = mountinfo.attached_ids()
        self._trees: dict[int, bool] = {}  # mounts that directories are on: do they lead to it?

    def is_held_by(self, pid: int) -> bool:
        """Tell whether a process or a thread has a file of it, or one that leads to it."""
        if any(self._is_held_through(fd) for fd in processes.all_files(pid)):
            return True
        return processes.mapped(self._dev) in processes.read(f"/proc/{pid}/maps")

    def _is_held_through(self, fd: int) -> bool:
        facts = kernel.fstat(fd)
        if facts.dev == self._dev:
            return True
        try:
            if statmount.by_fd(fd, statmount.STATMOUNT_SB_BASIC).sb_dev == self._dev:
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
        return type_of(fd).has(MANY_DEVICES) and self._is_seen(fd)

    def _is_in_tree(self, directory: int) -> bool:
        """Tell whether it is mounted in the anonymous tree of a directory."""
        try:
            top = trees.climb_tree(directory)
        except OSError:
            return False  # it is deleted
        try:
            return self._is_seen(top)
        finally:
            os.close(top)

    def _is_seen(self, fd: int) -> bool:
        """Tell whether an anonymous mount, or one below, is of it."""
        try:
            return any(mount.sb_dev == self._dev for mount in trees.view(fd))
        except OSError:
            return False  # a deleted file


def _loop_device_on(dev: int) -> str | None:
    for name in os.listdir("/sys/block") if kernel.is_directory("/sys/block") else []:
        if not name.startswith("loop") or not kernel.is_directory(f"/sys/block/{name}/loop"):
            continue
        try:
            with Fd.open(f"/dev/{name}", os.O_RDONLY) as device:
                info = loop_status(device)
        except OSError as error:
            if error.errno == errno.ENXIO:
                continue  # by now it has no file
            raise
        if huge_decode_dev(info.lo_device) == dev:
            return f"loop device {name}"
    return None
