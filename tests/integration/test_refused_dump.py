"""What cannot be restored faithfully is refused at dump: one clear line, and the task lives on."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

from .conftest import MakeScenario
from .harness import kernel, look
from .harness.agent import Check, Task
from .harness.placement import CONTENT, SUBDIRECTORY, Bind, Placement
from .harness.programs import hold_file
from .harness.scenario import Scenario

pytestmark = pytest.mark.detached


def hold_bound_socket(task: Task) -> Check:
    """A unix socket whose name is on the mount."""
    server = socket.socket(socket.AF_UNIX)
    here = os.open(task.path(), os.O_PATH)
    server.bind(f"/proc/self/fd/{here}/socket")
    os.close(here)
    server.listen()
    task.detach()
    return lambda: [server.fileno() >= 0, server.getsockname()]


def refused(held: Scenario, *patterns: str) -> None:
    """The dump fails with a single line of the plugin's, and the process goes on."""
    before, answer = look.seen(held.pid), held.ask()
    run = held.dump()
    for pattern in patterns:
        run.failed(f"criu-detached: .*{pattern}")
    ours = [line for line in run.errors() if "criu-detached" in line]
    assert len(ours) == 1, run.report()
    assert look.is_running(held.pid)
    assert look.seen(held.pid) == before
    assert held.ask() == answer


def test_source_shows_less(scenario: MakeScenario) -> None:
    """The filesystem is attached still, but only a directory of it that lacks the file."""
    held = scenario()
    held.start(hold_file)
    part = held.work / "part"
    part.mkdir()
    kernel.bind(held.ground.source / "tree" / "dir", part)
    try:
        kernel.umount2(held.ground.source, kernel.MNT_DETACH)
        refused(held, "file")
    finally:
        kernel.umount2(part)


@pytest.mark.covers("unix_socket", outcome="refused")
def test_bound_socket(scenario: MakeScenario, placement: Placement) -> None:
    refused(scenario(placement).start(hold_bound_socket), "socket")


def hold_anonymous(task: Task) -> Check:
    """A file in a tree that was cloned and never attached."""
    import ctypes  # the fd of libffi that it leaves open does no harm here

    libc = ctypes.CDLL(None)
    libc.syscall.restype = ctypes.c_long
    tree = libc.syscall(428, -100, os.fsencode(task.path()), 1 | os.O_CLOEXEC)
    fd = os.open("file", os.O_RDONLY, dir_fd=tree)
    return lambda: [tree >= 0, os.pread(fd, 100, 0).decode()]


@pytest.mark.covers("file", "tree_fd", outcome="refused", column="anonymous")
def test_anonymous(scenario: MakeScenario, placement: Placement) -> None:
    refused(scenario(placement).start(hold_anonymous), "")


def test_hidden_in_source(scenario: MakeScenario) -> None:
    """A mount on the source hides the way to the file there, and there is no other way."""
    held = scenario(binds=[Bind(SUBDIRECTORY)]).start(hold_file)
    hidden = held.ground.source / "tree"
    kernel.mount("cover", hidden, "tmpfs")
    try:
        assert list(hidden.iterdir()) == []
        held.survive()  # cloning a source without what is mounted on it gets there
    finally:
        kernel.umount2(hidden)


def test_left_running(scenario: MakeScenario) -> None:
    """A dump that leaves the process running changes nothing in it."""
    held = scenario().start(hold_file)
    before = look.seen(held.pid)
    held.dump("--leave-running").succeeded()
    assert look.seen(held.pid) == before
    assert held.ask() == CONTENT
    assert Path(held.images / "criu-detached.img").exists()


def test_unbindable_source(scenario: MakeScenario) -> None:
    """A source that cannot be cloned is found out while the process lives."""
    held = scenario().start(hold_file)
    subprocess.run(["mount", "--make-unbindable", str(held.ground.source)], check=True)
    refused(held, "would not do for the restore")


def hold_own_status(task: Task) -> Check:
    """What a procfs shows of the process itself."""
    fd = os.open(f"{task.points[0]}/self/status", os.O_RDONLY)
    task.detach()
    return lambda: os.pread(fd, 5, 0).decode()


def test_process_in_procfs(scenario: MakeScenario) -> None:
    """The restored process is another one, with other inodes in procfs."""

    def mount_proc(source: Path) -> None:
        kernel.mount("proc", source, "proc")

    held = scenario(mount_source=mount_proc, populate=lambda source: None).start(hold_own_status)
    refused(held, "process in procfs")
