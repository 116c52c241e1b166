"""What can be seen of a process and its mounts from outside."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from . import kernel


@dataclass(frozen=True)
class OpenFile:
    """One fd, as /proc shows it."""

    link: str
    flags: int
    pos: int
    mnt_id: int

    @property
    def lasting(self) -> tuple[str, int, int]:
        """What must be the same after a restore; mount ids are new each time."""
        return self.link, self.flags, self.pos


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


def lasting(pid: int) -> dict[int, tuple[str, int, int]]:
    """Every fd with what must be the same after a restore; pipes get new numbers."""
    return {
        fd: file.lasting if file.link.startswith("/") else (file.link.split(":")[0], 0, 0)
        for fd, file in sorted(open_files(pid).items())
    }


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


def is_running(pid: int) -> bool:
    """Whether the process is there, not dead and not stopped."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rsplit(")", 1)[1].split()[0] not in "ZXTt"


def mount_table(pid: int | str = "self") -> list[str]:
    """A namespace's mountinfo without the ids, which a restored namespace has anew."""
    lines = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    return sorted(" ".join(line.split(" ")[3:]) for line in lines)


def attached_ids() -> set[int]:
    """The ids of all mounts that some process sees."""
    seen: set[int] = set()
    namespaces: set[str] = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            namespace = os.readlink(f"/proc/{pid}/ns/mnt")
            if namespace not in namespaces:
                lines = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
                seen.update(int(line.split(" ", 1)[0]) for line in lines)
                namespaces.add(namespace)
        except OSError:
            continue  # a process that ended
    return seen


def is_detached(pid: int, fd: int) -> bool:
    """Whether the fd's mount is in no namespace, by mountinfo and, from 7.0, by statmount."""
    unseen = int(_fdinfo(pid, fd)["mnt_id"]) not in attached_ids()
    answer = mount_of(pid, fd)
    assert answer is None or answer.detached == unseen, f"mountinfo and statmount differ: {answer}"
    return unseen


def mount_of(pid: int, fd: int) -> kernel.MountAnswer | None:
    """What statmount says of an fd's mount; None before Linux 7.0."""
    if not kernel.has_statmount_by_fd():
        return None
    handle = os.open(f"/proc/{pid}/fd/{fd}", os.O_PATH)
    try:
        return kernel.statmount_by_fd(handle)
    finally:
        os.close(handle)


def mount_flags(pid: int, fd: int) -> int:
    """The flags of an fd's mount, as fstatvfs tells them on every kernel."""
    handle = os.open(f"/proc/{pid}/fd/{fd}", os.O_PATH)
    try:
        return os.fstatvfs(handle).f_flag
    finally:
        os.close(handle)
