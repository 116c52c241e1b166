"""Not only fds lead to a mount: so do the working directory, the root and the executable."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from ..conftest import MakeScenario
from ..harness import look
from ..harness.agent import Check, Task
from ..harness.placement import CONTENT, Placement, populate_tree


def hold_cwd(task: Task) -> Check:
    """The working directory, and nothing else."""
    os.chdir(task.path("dir"))
    task.detach()

    def check() -> list[str]:
        with open("../file") as above, open("inner") as beside:
            return [above.read(), beside.read()]

    return check


@pytest.mark.covers("cwd")
def test_cwd(scenario: MakeScenario, placement: Placement) -> None:
    held = scenario(placement).start(hold_cwd).cycle()
    assert held.ask() == [CONTENT, "inner\n"]
    held.cycle()
    assert held.ask() == [CONTENT, "inner\n"]


def hold_root(task: Task) -> Check:
    """A child whose root is the mount: it sees nothing else."""

    def child() -> Check:
        os.chroot(task.path())
        os.chdir("/")

        def check() -> list[object]:
            with open("/file") as file:
                return [file.read(), sorted(os.listdir("/")) == sorted(os.listdir("/.."))]

        return check

    ask_child = task.fork(child)
    task.detach()
    return ask_child


@pytest.mark.covers("root")
def test_root(scenario: MakeScenario, placement: Placement) -> None:
    held = scenario(placement).start(hold_root).cycle()
    assert held.ask() == [CONTENT, True]


def populate_with_program(source: Path) -> None:
    """The common tree and a program that runs without being asked anything."""
    populate_tree(source)
    shutil.copy2("/usr/bin/sleep", source / "tree" / "program")


def hold_program(task: Task, deleted: bool = False) -> Check:
    """A child that executes a program of the mount."""
    pid = os.posix_spawn(task.path("program"), ["program", "100000"], {})
    while os.readlink(f"/proc/{pid}/exe") == os.readlink("/proc/self/exe"):
        os.sched_yield()
    if deleted:
        os.unlink(task.path("program"))
    task.detach()
    return lambda: [pid, os.readlink(f"/proc/{pid}/exe")]


@pytest.mark.covers("exe")
def test_exe(scenario: MakeScenario, placement: Placement) -> None:
    held = scenario(placement, populate=populate_with_program).start(hold_program).cycle()
    pid, exe = held.ask()
    assert exe.endswith("/tree/program")
    assert look.is_running(pid)


@pytest.mark.covers("exe", "deleted_file")
def test_deleted_exe(scenario: MakeScenario, placement: Placement) -> None:
    """What is executed is a file again that has no name, with the same content."""
    held = scenario(placement, populate=populate_with_program).start(hold_program, deleted=True)
    pid, exe = held.cycle().ask()
    assert exe.endswith("/tree/program (deleted)")
    assert look.is_running(pid)
    program = Path(f"/proc/{pid}/exe")
    assert (program.stat().st_nlink, program.read_bytes()) == (
        0,
        Path("/usr/bin/sleep").read_bytes(),
    )
    if placement is Placement.HOST:
        assert not (held.ground.source / "tree" / "program").exists()
