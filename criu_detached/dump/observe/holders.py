# SPDX-License-Identifier: GPL-2.0-only
"""Who else holds a filesystem: a mount, or, where no mount shows it, a process and what it made.

What is proven here, in which order, is in docs/design.md, "Looking at the machine".
"""

from __future__ import annotations

import os
import time

from criu_detached.dump.observe.procfs import namespace_of, namespaces_of_processes, tasks_in
from criu_detached.errors import quote
from criu_detached.kernel import mountinfo, statmount, walk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from criu_detached.dump.observe.machine import Look, Machine
    from criu_detached.kernel.walk import AttachedMount, Seen

_PAUSES = (0.001, 0.01, 0.1)  # seconds
_CLEAN = 2  # looks, the last ones, that have to find nobody


def outside_holder(machine: Machine, dev: int, many_devices: bool = False) -> str | None:
    """Name somebody who keeps a filesystem alive besides the dumped tasks.

    Args:
        machine: what is around the dump.
        dev: device of its superblock, which no attached mount showed: see attached_mount().
        many_devices: its files may show other device numbers.

    Returns:
        A holder, for a message; None when none is to be found. What procfs does not show
        (files in flight in the sockets of others, registered with io_uring) is not seen.

    Raises:
        UnsureError: what has to be looked at cannot be.
    """
    for pause in (0, *_PAUSES[1:]):
        if pause:
            # Containers come and go, and with them overlays that cannot be looked at in between.
            time.sleep(pause)
            machine.look_again()
        process = _who_stays(machine, dev)
        if process is not None:
            return process
        if failure := machine.blind_spot():
            raise failure
        found = _what_holds(machine.others, dev, many_devices)
        if found is None:
            return None
    return found


def _what_holds(look: Look, dev: int, many_devices: bool) -> str | None:
    if dev in look.after.devices - look.before.devices:
        return "a mount that was made just now"
    # Overlays and the like last: who mounts one may let go of its layer only then.
    found = look.elsewhere.holder(dev)
    return look.elsewhere_by_files.holder(dev) if found is None and many_devices else found


def _who_stays(machine: Machine, dev: int) -> str | None:
    """Tell who holds it from who only looks, as another dump on this machine does.

    It need not be the same process each time: one may hand it on to the next and end. So the
    question is each time whether anybody has it.
    """
    found = list(machine.others.holders(dev))
    if not _of_others(machine, found):
        return None
    who, clean = "", 0
    for pause in _PAUSES:
        time.sleep(pause)
        if not _still_has(machine, found, dev):
            found = _of_others(machine, machine.look_again().holders(dev))
        present = [seen for seen in found if not seen.gone]
        clean = 0 if found else clean + 1
        who = _name(present or found) if found else who
    return who if clean < _CLEAN else None


def _still_has(machine: Machine, found: Iterable[Seen], dev: int) -> bool:
    """Ask one that had a file whether it still has: that is a short question."""
    for seen in found:
        if seen.pid and not seen.gone and seen.what != walk.SOCKET:
            again = machine.look_at(seen.pid)
            try:
                return any(True for _ in again.on(dev=dev))
            finally:
                again.close()
    return False


def _of_others(machine: Machine, found: Iterable[Seen]) -> list[Seen]:
    """What is not of dumped tasks: sockets that were found with no task may be theirs."""
    found = list(found)
    if all(seen.pid for seen in found):
        return found
    known = {seen.socket for seen in machine.held_by_tasks.on(dev=0) if seen.what == walk.SOCKET}
    known |= {seen.socket for seen in found if seen.pid}
    return [seen for seen in found if seen.pid or seen.socket not in known]


def _name(found: list[Seen]) -> str:
    seen = max(found, key=lambda seen: seen.pid > 0)
    if not seen.pid:
        return f"a unix socket (inode {seen.socket}), which no process shows,"
    if seen.tid != seen.pid:
        return f"thread {seen.tid} of process {seen.pid}"
    return f"process {seen.pid}"


# --- mounts ---


def attached_mount(machine: Machine, dev: int) -> str | None:
    """Say where a filesystem is mounted, in whatever namespace; None: nowhere.

    Args:
        machine: what is around the dump.
        dev: device of its superblock.
    """
    if dev not in machine.mounts.devices:
        return None
    # That may have been long ago.
    mounts = machine.read_mounts_again().of_superblock(dev)
    if not mounts:
        return None
    return _place_of(mounts) if mounts[0].ns_id else _place_in_mountinfo(dev)


def _place_of(mounts: list[AttachedMount]) -> str:
    own = namespace_of(os.getpid())
    mount = next((mount for mount in mounts if mount.ns_id == own), mounts[0])
    point = quote(_mountpoint(mount))
    if mount.ns_id == own:
        return f"{point} where criu runs"
    for pid in tasks_in(mount.ns_id):
        return f"{point} in the mount namespace of process {pid}"
    return f"a place in mount namespace {mount.ns_id}, which no process lives in"


def _mountpoint(mount: AttachedMount) -> bytes:
    wanted = statmount.STATMOUNT_MNT_BASIC | statmount.STATMOUNT_MNT_POINT
    for found in statmount.mounts_in_ns(mount.ns_id, wanted):
        if found.mnt_id == mount.id:
            return found.mnt_point
    return b"?"  # it is gone by now


def _place_in_mountinfo(dev: int) -> str | None:
    ours = os.stat("/proc/self/ns/mnt").st_ino
    for ns, pids in namespaces_of_processes():
        for pid, mount in mountinfo.mounts_of_namespace(pids):
            if mount.dev == dev:
                other = f"in the mount namespace of process {pid}"
                where = "where criu runs" if ns == ours else other
                return f"{quote(mount.mountpoint)} {where}"
    return None
