"""Filesystems of the kernel's own that are mounted nowhere any more: they are mounted again."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ..conftest import MakeScenario
from ..harness import kernel
from ..harness.agent import Check, Task
from ..harness.kernel import MNT_DETACH, has_statmount_by_fd, umount2
from ..harness.placement import Bind, Placement, Shape
from ..harness.scenario import Scenario

pytestmark = pytest.mark.detached

WHOLE = [Bind(Shape("whole", "", ""))]

SIOCSIFFLAGS, IFF_UP = 0x8914, 1
NAMESPACES = {"ipc": 0x08000000, "net": 0x40000000}  # CLONE_NEWIPC, CLONE_NEWNET

PER_NAMESPACE = {"mqueue": "ipc", "sysfs": "net"}
ONE = ["binfmt_misc", "cgroup2", "configfs", "debugfs", "fusectl", "pstore"]
ONE += ["securityfs", "tracefs"]
# Files that are always there; of the other filesystems a directory has to do.
FILES = {
    "binfmt_misc": "status",
    "cgroup2": "cgroup.controllers",
    "mqueue": "queue",
    "sysfs": "devices/virtual/net/lo/address",
    "tracefs": "README",
}
# Before Linux 7.0 their options are not told, and mounting them sets some.
OPTIONS_MATTER = {"cgroup2", "debugfs", "tracefs"}
NO_OPTIONS = r"the kernel does not tell its options; Linux 7\.0 or newer does"


@contextmanager
def new_namespace(name: str) -> Iterator[None]:
    """What is forked meanwhile is in a namespace of its own."""
    own = os.open(f"/proc/self/ns/{name}", os.O_RDONLY)
    try:
        kernel.unshare(NAMESPACES[name])
        if name == "net":
            bring_up_loopback()  # criu talks to itself
        yield
    finally:
        if sys.version_info >= (3, 12):
            os.setns(own)
        os.close(own)


def bring_up_loopback() -> None:
    """What "ip link set lo up" does: netdevice(7)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("=16sH14x", b"lo", IFF_UP))


def mounted_in(pid: int | str, fs_type: str) -> bool:
    """Whether a process sees a mount of this type."""
    try:
        table = Path(f"/proc/{pid}/mountinfo").read_text(errors="replace")
    except OSError:
        return False  # it ended
    return f" - {fs_type} " in table


def start(
    scenario: MakeScenario,
    fs_type: str,
    program: Any,
    placement: Placement = Placement.HOST,
    options: str = "",
    populate: Callable[[Path], None] = lambda _: None,
    **arguments: Any,
) -> Scenario:
    """A process that holds something on such a filesystem alone."""

    def mount(source: Path) -> None:
        try:
            kernel.mount(fs_type, source, fs_type, 0, options)
        except OSError as error:
            pytest.skip(f"this kernel mounts no {fs_type}: {error}")

    held = scenario(placement, WHOLE, mount_source=mount, populate=populate)
    held.start(program, **arguments)
    umount2(held.ground.source, MNT_DETACH)
    return held


def hold_entry(task: Task, name: str) -> Check:
    """A file, where there is one that always is, and the root directory."""
    if name == "queue":
        os.close(os.open(task.path(name), os.O_RDONLY | os.O_CREAT, 0o600))
    file = os.open(task.path(name), os.O_RDONLY) if name else -1
    top = os.open(task.path(), os.O_RDONLY | os.O_DIRECTORY)
    task.detach()
    return lambda: [file < 0 or os.pread(file, 1000, 0).decode(), len(os.listdir(top)) > 0]


def hold_file(task: Task, name: str) -> Check:
    """A file alone."""
    file = os.open(task.path(name), os.O_RDONLY)
    task.detach()
    return lambda: os.pread(file, 1000, 0).decode()


def hold_directory(task: Task, name: str) -> Check:
    """A directory that is the working directory."""
    os.chdir(task.path(name))
    task.detach()
    return lambda: [name for name in sorted(os.listdir()) if not name.isdigit()]


@pytest.mark.covers("file", "directory", column="sole-held")
@pytest.mark.parametrize("where", [Placement.HOST, Placement.HOST_SOURCE], ids=lambda p: p.value)
@pytest.mark.parametrize("fs_type", PER_NAMESPACE)
def test_one_for_each_namespace(scenario: MakeScenario, fs_type: str, where: Placement) -> None:
    """Criu is in the namespace that it is of, and so sees it too."""
    with new_namespace(PER_NAMESPACE[fs_type]):
        held = start(scenario, fs_type, hold_entry, where, name=FILES[fs_type])
        expected = held.ask()
        for _ in range(2):
            held.cycle()
            assert held.ask() == expected


def test_other_namespace(scenario: MakeScenario) -> None:
    """Its namespace is dumped with the task, and made anew: criu cannot mount it."""
    with new_namespace("ipc"):
        held = start(scenario, "mqueue", hold_directory, name="")
    expected = held.ask()
    held.dump().failed("is of another IPC namespace than criu's: keep one mounted in the mount")
    assert held.ask() == expected


def cycles_where_told(held: Scenario, expected: object, options_matter: bool = True) -> bool:
    """Dumped and restored twice; where its options matter and the kernel does not tell, refused."""
    if options_matter and not has_statmount_by_fd():
        held.dump().failed(NO_OPTIONS)
        assert held.ask() == expected
        return False
    for _ in range(2):
        held.cycle()
        assert held.ask() == expected
    return True


@pytest.mark.parametrize("fs_type", ONE)
def test_one_for_the_machine(scenario: MakeScenario, fs_type: str) -> None:
    """Where it is mounted too, that is a bind source."""
    here = mounted_in("self", fs_type)
    if not here and any(mounted_in(pid, fs_type) for pid in os.listdir("/proc")):
        pytest.skip(f"{fs_type} is mounted on this machine where criu does not see it")
    held = start(scenario, fs_type, hold_entry, name=FILES.get(fs_type, ""))
    expected = held.ask()
    cycles_where_told(held, expected, fs_type in OPTIONS_MATTER and not here)


@pytest.mark.covers("file", column="sole-held")
@pytest.mark.parametrize("where", [Placement.HOST, Placement.HOST_SOURCE], ids=lambda p: p.value)
def test_proc_file(scenario: MakeScenario, where: Placement) -> None:
    held = start(scenario, "proc", hold_file, where, name="version")
    expected = held.ask()
    for _ in range(2):
        held.cycle()
        assert held.ask() == expected == Path("/proc/version").read_text()


@pytest.mark.covers("cwd", column="sole-held")
@pytest.mark.parametrize("name", ["", "sys/kernel"])
def test_proc_directory(scenario: MakeScenario, name: str) -> None:
    """What it shows of processes is told by an option, which Linux 7.0 tells."""
    held = start(scenario, "proc", hold_directory, options="hidepid=invisible", name=name)
    expected = held.ask()
    if cycles_where_told(held, expected) and not name:
        assert sees_init(held.pid) == [False, True], "nobody, root"


def sees_init(pid: int) -> list[bool]:
    """Whether nobody and root see the first process in a task's working directory."""
    cwd = f"/proc/{pid}/cwd"
    command = ["sh", "-c", "test -e 1/status"]
    return [
        subprocess.run(command, cwd=cwd, user=user, group=user, extra_groups=[]).returncode == 0
        for user in (65534, 0)
    ]


def test_process_in_proc(scenario: MakeScenario) -> None:
    """Another process has the number after the restore, perhaps."""
    held = start(scenario, "proc", hold_file, name="1/comm")
    held.dump().failed(r"procfs|no attached mount shows")


@pytest.mark.covers("cwd", column="sole-held")
@pytest.mark.parametrize(("opened", "refusal"), [(False, None), (True, "has a state")])
def test_devpts(scenario: MakeScenario, opened: bool, refusal: str | None) -> None:
    """A new instance has no terminals."""
    masters = []

    def open_terminal(source: Path) -> None:
        if opened:
            masters.append(os.open(source / "ptmx", os.O_RDWR | os.O_NOCTTY))

    held = start(
        scenario, "devpts", hold_directory, options="newinstance", populate=open_terminal, name=""
    )
    check_fresh(held, refusal)
    for master in masters:
        os.close(master)


def hold_objects(task: Task, pinned: bool) -> Check:
    """The directory of pinned BPF objects, with a directory for some in it or none."""
    os.chdir(task.path())
    if pinned:
        os.mkdir("objects")
    task.detach()
    return lambda: sorted(os.listdir())


@pytest.mark.covers("cwd", column="sole-held")
@pytest.mark.parametrize(("pinned", "refusal"), [(False, None), (True, "has a state")])
def test_bpf(scenario: MakeScenario, pinned: bool, refusal: str | None) -> None:
    """A new instance has no objects."""
    held = start(scenario, "bpf", hold_objects, options="mode=750", pinned=pinned)
    check_fresh(held, refusal)
    assert os.stat(f"/proc/{held.pid}/cwd").st_mode & 0o7777 == 0o1750


def check_fresh(held: Scenario, refusal: str | None) -> None:
    """Restored twice, or refused for its state, or on this kernel for its options."""
    expected = held.ask()
    if not has_statmount_by_fd():
        refusal = NO_OPTIONS
    if refusal:
        held.dump().failed(refusal)
        assert held.ask() == expected
        return
    for _ in range(2):
        held.cycle()
        assert held.ask() == expected
