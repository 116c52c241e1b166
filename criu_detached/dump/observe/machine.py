# SPDX-License-Identifier: GPL-2.0-only
"""The machine around a dump, looked at once: the dumped tasks, all others, and what is mounted.

Every question about them is answered for all filesystems from the same look. What is asked in
which order, and why that is enough, is in docs/design.md, "Looking at the machine".
"""

from __future__ import annotations

import errno
import os
import time

from criu_detached import kernel
from criu_detached.dump.observe.elsewhere import Elsewhere, HeldMount
from criu_detached.dump.observe.procfs import (
    field_of,
    is_traced,
    namespaces_of_processes,
    parent_of,
    process_ids,
    read,
)
from criu_detached.errors import reason
from criu_detached.filesystems.types import MANY_DEVICES, by_name, rows_with
from criu_detached.kernel import mountinfo, tasks, walk
from criu_detached.kernel.fds import Fd
from criu_detached.kernel.walk import MountTable, Seen, Walk, Walker
from criu_detached.once import once

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_PAUSES = (0.01, 0.1, 0.2)  # seconds, before what failed is tried again

# linux/nsfs.h: the inodes of the first namespaces
_FIRST_USER_NS, _FIRST_PID_NS = 0xEFFFFFFD, 0xEFFFFFFC
_CAP_SYS_PTRACE = 19  # linux/capability.h
_INIT = 1

# What hides processes (Documentation/filesystems/proc.rst), as mountinfo shows it.
_HIDING = {b"hidepid=2", b"hidepid=invisible", b"hidepid=4", b"hidepid=ptraceable"}


class UnsureError(OSError):
    """What has to be looked at cannot be; the text says what, and what is missing."""


class BoundFile:
    """The file that a unix socket of a dumped task is bound to."""

    __slots__ = ("dev", "fd", "mnt_id", "pid")

    def __init__(self, pid: int, fd: int, file: kernel.FileStat) -> None:
        self.pid = pid
        self.fd = fd  # of the socket, in that task
        self.dev = file.dev
        self.mnt_id = file.mnt_id

    def open(self) -> Fd:
        """Open the file (O_PATH); raises OSError."""
        with _pidfd(self.pid) as pid_fd:
            return tasks.bound_file(pid_fd, self.fd)


class Look:
    """One look at all tasks but the dumped ones, between two at what is mounted."""

    def __init__(self, before: MountTable, walk: Walk, after: MountTable) -> None:
        self.before = before
        self.walk = walk
        self.after = after

    def holders(self, dev: int) -> Iterator[Seen]:
        """Yield what others have of a superblock, or had a moment ago (Seen.gone).

        Args:
            dev: device of the superblock. Files of some show other numbers: see mounts().
        """
        return (seen for seen in self.walk.on(dev=dev) if not seen.error)

    def mounts(self) -> Iterator[tuple[int, int]]:
        """Yield device and id of mounts that are attached nowhere, as far as is known."""
        for dev, mnt_id in self.walk.mounts():
            if mnt_id and dev and (mnt_id, dev) not in self.after.pairs:
                yield dev, mnt_id

    @once
    def elsewhere(self) -> Elsewhere:
        """What holds filesystems and is no process. It is asked for after the look."""
        found = Elsewhere()
        found.ask([mount for mount in self._held_mounts if mount.has_directory], self.after)
        return found

    @once
    def elsewhere_by_files(self) -> Elsewhere:
        """Of which superblocks the mounts are that others have files on, and no directory."""
        found = Elsewhere()
        found.ask_trees([mount for mount in self._held_mounts if not mount.has_directory])
        return found

    @once
    def _held_mounts(self) -> list[HeldMount]:
        found = [
            HeldMount(dev, mnt_id, self.walk.on(dev=dev, mnt_id=mnt_id))
            for dev, mnt_id in self.mounts()
        ]
        return [mount for mount in found if mount.places]

    def failures(self) -> Iterator[Seen]:
        """Yield what could not be looked at, and is not known to be elsewhere."""
        attached = {mnt_id for mnt_id, _ in self.after.pairs}
        for seen in self.walk.on():
            if seen.error and not seen.gone and seen.mnt_id not in attached:
                yield seen


class Machine:
    """What is around a dump. The dumped tasks do not run, so they are looked at once."""

    def __init__(self) -> None:
        self._walker = Walker()
        self._table: MountTable | None = None
        self._look: Look | None = None

    # --- the dumped tasks ---

    @once
    def tasks(self) -> list[int]:
        """The ids of the dumped processes: CRIU traces them."""
        return [pid for pid in process_ids() if walk.may_trace(pid) and is_traced(pid)]

    @once
    def root_task(self) -> int:
        """The id of the dumped process that is the parent of all others; 0: none is dumped."""
        parents = {pid: parent_of(pid) for pid in self.tasks}
        return next((pid for pid, parent in parents.items() if parent not in parents), 0)

    @once
    def held_by_tasks(self) -> Walk:
        """All that the dumped tasks have, but for what only the kernel mounts."""
        return self._walker.look_at_tasks(self.tasks)

    @once
    def bound_by_tasks(self) -> list[BoundFile]:
        """The files that their unix sockets are bound to."""
        found = []
        for seen in self.held_by_tasks.on(dev=0):
            if seen.what == walk.SOCKET:
                try:
                    with open_bound(seen) as fd:
                        found.append(BoundFile(seen.tid, seen.number, kernel.glance(b"", fd)))
                except OSError as error:
                    if error.errno not in _NOT_BOUND:
                        raise
        return found

    # --- what is mounted ---

    @property
    def mounts(self) -> MountTable:
        """The attached mounts of all namespaces, as they were when they were first asked for."""
        if self._table is None:
            self._table = read_mounts()
        return self._table

    def read_mounts_again(self) -> MountTable:
        """The attached mounts as they are now. What is known of other tasks is dropped."""
        self._table, self._look = None, None
        return self.mounts

    # --- all others ---

    @property
    def others(self) -> Look:
        """What other tasks have on mounts that are attached nowhere; the last look at them.

        Raises:
            OSError: they cannot be looked at.
        """
        return self._look or self.look_again()

    def look_again(self) -> Look:
        """Look at the others once more; raises OSError."""
        found = self._walker.look_at_others(self.tasks, self.mounts)
        # Who mounts something may let go of it only then.
        self._look = Look(self.mounts, found, read_mounts())
        return self._look

    def look_at(self, pid: int) -> Walk:
        """Look at one task more, which may run; raises OSError."""
        return self._walker.look_at_tasks([pid])

    def blind_spot(self) -> UnsureError | None:
        """Tell why not every task can be looked at, if that is so."""
        if os.stat("/proc/self/ns/pid").st_ino != _FIRST_PID_NS:
            return UnsureError(
                "criu runs in a PID namespace, and does not see the processes outside of it: run it"
                " outside"
            )
        if not _has_cap_sys_ptrace() and _hides_processes():
            return UnsureError("/proc hides processes (hidepid), and criu has no CAP_SYS_PTRACE")
        # Who is just about to begin or to end is another one a little later.
        failure = self._failure()
        for pause in _PAUSES:
            if failure is None:
                return None
            time.sleep(pause)
            self.look_again()
            failure = self._failure()
        return failure

    def _failure(self) -> UnsureError | None:
        return next(map(self._describe, filter(_is_failure, self.others.failures())), None)

    def _describe(self, seen: Seen) -> UnsureError:
        """Say what could not be looked at, and what is missing."""
        thread = f"thread {seen.tid} of " if seen.tid != seen.pid else ""
        who = f"{thread}process {seen.pid} ({_WHAT.get(seen.what) or seen.link})"
        if seen.error == errno.ETIMEDOUT:
            return UnsureError(f"{who} does not answer")
        text = f"{who} cannot be looked at: {reason(seen.error)}"
        if seen.error not in (errno.EACCES, errno.EPERM):
            return UnsureError(text)
        if not _has_cap_sys_ptrace():
            return UnsureError(f"{text}, for criu has no CAP_SYS_PTRACE")
        if os.stat("/proc/self/ns/user").st_ino != _FIRST_USER_NS:
            return UnsureError(f"{text}, for criu is in a user namespace")
        return UnsureError(f"{text}, which a security module may forbid")


_WHAT = {
    walk.ALL_FDS: "its fds",
    walk.ALL_MAPPINGS: "its mappings",
    walk.ALL_THREADS: "its threads",
    walk.WHOLE_TASK: "all of it",
}
# Of SIOCUNIXFILE and pidfd_getfd(2): it is none of the kind, bound to no file, or closed.
_NOT_BOUND = {errno.ENOENT, errno.ESRCH, errno.EBADF, errno.EAFNOSUPPORT}


def _is_failure(seen: Seen) -> bool:
    """Tell what matters from init, where the kernel lets nobody look at it.

    Where criu has all privileges and init cannot be looked at all the same, a security module keeps
    everybody out. It is what runs the machine, and is taken for one that has nothing of the dump.
    """
    return not (
        seen.pid == _INIT
        and seen.what == walk.WHOLE_TASK
        and seen.error in (errno.EACCES, errno.EPERM)
        and _has_cap_sys_ptrace()
        and os.stat("/proc/self/ns/user").st_ino == _FIRST_USER_NS
    )


def _has_cap_sys_ptrace() -> bool:
    """Tell whether this process may look at any other (capabilities(7))."""
    effective = field_of(read("/proc/self/status"), b"CapEff")
    return bool(int(effective or b"0", 16) >> _CAP_SYS_PTRACE & 1)


def _hides_processes() -> bool:
    """Tell whether /proc shows some processes to those alone that may trace them."""
    shown = [mount for mount in mountinfo.read_mountinfo() if mount.mountpoint == b"/proc"]
    return bool(shown and _HIDING & set(shown[-1].super_options))


def read_mounts() -> MountTable:
    """The attached mounts of all mount namespaces."""
    try:
        return MountTable.read([row.magic for row in rows_with(MANY_DEVICES)])
    except OSError as error:
        if error.errno not in _NO_WALK:
            raise
    return MountTable.of(
        (mount.mnt_id, mount.dev, by_name(mount.fs_type).has(MANY_DEVICES))
        for _, pids in namespaces_of_processes()
        for _, mount in mountinfo.mounts_of_namespace(pids)
    )


# No walk over the namespaces: before Linux 6.12, and in a PID namespace.
_NO_WALK = {errno.ENOTTY, errno.EPERM, errno.EINVAL, errno.ENOSYS}


def open_bound(seen: Seen, name: bytes = b"") -> Fd:
    """Open the file that a socket is bound to (O_PATH).

    Args:
        seen: the socket.
        name: that it has to be bound to; empty: any.

    Raises:
        OSError: it is not; or is closed by now.
    """
    with _pidfd(seen.tid) as pid_fd:
        return tasks.bound_file(pid_fd, seen.number, name)


def _pidfd(pid: int) -> Fd:
    """A pidfd of a process, or from Linux 6.9 on of a thread; raises OSError."""
    try:
        return Fd(os.pidfd_open(pid))
    except OSError:
        return Fd(os.pidfd_open(pid, os.O_EXCL))  # PIDFD_THREAD
