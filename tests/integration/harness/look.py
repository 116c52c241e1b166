"""What can be seen of a process and its mounts from outside."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from . import kernel

# CRIU masks O_TMPFILE, which contains O_DIRECTORY, out of the flags of all that it opens by path.
CRIU_DROPS = os.O_TMPFILE
O_LARGEFILE = 0o100000  # which Python has as 0


@dataclass(frozen=True)
class OpenFile:
    """One fd, as /proc shows it."""

    link: str
    flags: int
    pos: int
    mnt_id: int


def open_files(pid: int) -> dict[int, OpenFile]:
    """Every fd of a process."""
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        info = _fdinfo(pid, int(name))
        found[int(name)] = OpenFile(
            os.readlink(f"/proc/{pid}/fd/{name}"),
            int(info["flags"], 8),
            int(info["pos"]),
            int(info["mnt_id"]),
        )
    return found


def _fdinfo(pid: int, fd: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/fdinfo/{fd}").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def tree(pid: int) -> list[int]:
    """A process and all that descend from it."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


def session(leader: int) -> list[int]:
    """The processes of a session, in whatever state; the leader may be gone."""
    pids = map(int, filter(str.isdigit, os.listdir("/proc")))
    return [pid for pid in pids if _stat(pid)[3] == str(leader)]


def is_running(pid: int) -> bool:
    """Whether the process is there, not dead and not stopped."""
    return _state(pid) not in "ZXTt"


def _state(pid: int) -> str:
    """The letter for a process's state; X if there is none."""
    return _stat(pid)[0]


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name: state, parent, process group, session."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ["X", "", "", ""]
    return stat.rsplit(")", 1)[1].split()


def wait_until_idle(pid: int) -> None:
    """Wait until the processes do nothing but wait for a question, as agent.py has them wait."""
    for process in tree(pid):
        while _state(process) != "Z" and not _waits(process):
            os.sched_yield()


def _waits(pid: int) -> bool:
    """Whether a process is in the system call read or rt_sigtimedwait."""
    return Path(f"/proc/{pid}/syscall").read_text().split()[0] in ("0", "128")


def mount_table(pid: int | str = "self") -> list[str]:
    """A namespace's mountinfo without the ids, which a restored namespace has anew."""
    return sorted(" ".join(line.split(" ")[3:]) for line in _mountinfo(pid))


def _mountinfo(pid: int | str) -> list[str]:
    """The lines of mountinfo; names may hold what Python takes for line ends, save newline."""
    text = Path(f"/proc/{pid}/mountinfo").read_bytes().decode(errors="surrogateescape")
    # A process whose namespace is being taken down sees no mount.
    return [line for line in text.split("\n") if line]


def attached_ids() -> set[int]:
    """The ids of all mounts that some process sees."""
    seen: set[int] = set()
    namespaces: set[str] = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            namespace = os.readlink(f"/proc/{pid}/ns/mnt")
            if namespace not in namespaces:
                seen.update(int(line.split(" ", 1)[0]) for line in _mountinfo(pid))
                namespaces.add(namespace)
        except OSError:
            continue  # a process that ended
    return seen


def is_detached(pid: int, fd: int) -> bool:
    """Whether the fd's mount is in no namespace, by mountinfo and, from 7.0, by statmount."""
    return _is_detached(pid, fd, attached_ids())


def _is_detached(pid: int, fd: int, attached: set[int]) -> bool:
    unseen = int(_fdinfo(pid, fd)["mnt_id"]) not in attached
    answer = mount_of(pid, fd)
    if answer and answer.detached != unseen:
        # An anonymous tree of several mounts is a namespace to statmount.
        assert unseen and _can_be_cloned(pid, fd), f"mountinfo and statmount differ: {answer}"
    return unseen


def is_anonymous(pid: int, fd: int) -> bool:
    """Whether an fd's mount is anonymous: in no namespace, and yet it can be cloned."""
    return is_detached(pid, fd) and _can_be_cloned(pid, fd)


def _can_be_cloned(pid: int, fd: int) -> bool:
    """Whether an fd's mount can be cloned in some mount namespace: that which it was made in.

    Of an anonymous mount this is so from Linux 6.15 on, and of a detached one never.
    """
    places: dict[str, int] = {}
    for place in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):  # a process that ended
            places.setdefault(os.readlink(f"/proc/{place}/ns/mnt"), int(place))
    return any(_clones_in(place, pid, fd) for place in places.values())


def _clones_in(place: int, pid: int, fd: int) -> bool:
    """Whether an fd's mount can be cloned in the mount namespace of a process."""
    child = os.fork()
    if not child:
        status = 1
        try:
            held = os.open(f"/proc/{pid}/fd/{fd}", os.O_PATH)
            kernel.setns(os.open(f"/proc/{place}/ns/mnt", os.O_RDONLY))
            kernel.open_tree(held, "", kernel.OPEN_TREE_CLONE | kernel.AT_EMPTY_PATH)
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1] == 0


def mount_of(pid: int, fd: int) -> kernel.MountAnswer | None:
    """What statmount says of an fd's mount.

    None before Linux 7.0 (EINVAL, ENOSYS before 6.8), for pipes and the like (EINVAL), and for
    anonymous mounts (ENOENT).
    """
    handle = os.open(f"/proc/{pid}/fd/{fd}", os.O_PATH)
    try:
        return kernel.statmount_by_fd(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOENT):
            raise
        return None
    finally:
        os.close(handle)


def mount_flags(pid: int, fd: int) -> int:
    """The flags of an fd's mount, as fstatvfs tells them on every kernel."""
    handle = os.open(f"/proc/{pid}/fd/{fd}", os.O_PATH)
    try:
        return os.fstatvfs(handle).f_flag
    finally:
        os.close(handle)


@dataclass(frozen=True)
class SeenFile:
    """What must be the same of an fd after a restore: its mount's id is new each time."""

    link: str
    flags: int
    pos: int
    detached: bool
    mount: int  # the how-manieth mount this is, counted in the order of the fds


@dataclass(frozen=True)
class Seen:
    """All that must be the same after a restore, comparable as a whole."""

    files: dict[int, dict[int, SeenFile]]
    mounts: dict[int, list[str]]
    runner_mounts: list[str]


def seen(pid: int) -> Seen:
    """Look at a process and its descendants; a zombie among them has neither files nor mounts."""
    attached = attached_ids()
    numbers: dict[int, int] = {}
    living = [process for process in tree(pid) if _state(process) != "Z"]
    pids = {inner_pid(process): process for process in living}
    files = {inner: _seen_files(process, attached, numbers) for inner, process in pids.items()}
    tables = {inner: mount_table(process) for inner, process in pids.items()}
    return Seen(files, tables, mount_table())


def inner_pid(pid: int) -> int:
    """A process's pid as it knows it itself."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("NSpid:", 1)[1].split("\n", 1)[0].split()[-1])


def seen_inside(pid: int) -> Seen:
    """Look at a container from its first process on.

    Processes are known by their ids inside, and mounts by their places: an engine makes the mounts
    and the pipes around the container anew.
    """
    attached = attached_ids()
    numbers: dict[int, int] = {}
    pids = sorted((one for one in tree(pid) if _state(one) != "Z"), key=inner_pid)
    files = {inner_pid(one): _made_here(_seen_files(one, attached, numbers)) for one in pids}
    return Seen(files, {inner_pid(one): _places(one) for one in pids}, [])


def _made_here(files: dict[int, SeenFile]) -> dict[int, SeenFile]:
    """Without the flag that depends on how a program was compiled that opened a file."""
    return {fd: replace(file, flags=file.flags & ~O_LARGEFILE) for fd, file in files.items()}


def _places(pid: int) -> list[str]:
    """The mount points of a namespace."""
    return sorted(line.split(" ")[4] for line in _mountinfo(pid))


def is_agent(pid: int) -> bool:
    """Whether a process runs the agent of these tests."""
    return b"\0-I\0-S\0-c\0" in Path(f"/proc/{pid}/cmdline").read_bytes()


def _seen_files(pid: int, attached: set[int], numbers: dict[int, int]) -> dict[int, SeenFile]:
    """The fds of one process, with the mounts numbered across all processes."""
    found = {}
    for fd, file in sorted(open_files(pid).items()):
        link = file.link if file.link.startswith("/") else file.link.split(":")[0]
        number = numbers.setdefault(file.mnt_id, len(numbers))
        detached = link.startswith("/") and _is_detached(pid, fd, attached)
        found[fd] = SeenFile(link, file.flags & ~CRIU_DROPS, file.pos, detached, number)
    return found
