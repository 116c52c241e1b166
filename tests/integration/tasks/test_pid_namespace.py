"""A container's init in a PID namespace of its own, with tasks in nested mount namespaces."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ..conftest import MakeScenario
from ..harness import kernel, look
from ..harness.agent import Check, Task
from ..harness.placement import CONTENT, Placement
from ..harness.program import Program
from ..harness.scenario import Scenario, told_of_answers
from ..mounts.test_nested_namespace import hold_in_nested, hold_passed_on

CLONE_NEWPID = 0x20000000


@contextmanager
def new_pid_namespace() -> Iterator[None]:
    """What is forked meanwhile is the init of a new PID namespace."""
    own = os.open("/proc/self/ns/pid", os.O_RDONLY)
    kernel.unshare(CLONE_NEWPID)
    try:
        yield
    finally:
        if sys.version_info >= (3, 12):
            os.setns(own, CLONE_NEWPID)
        os.close(own)


def hold_file(task: Task) -> Check:
    """One file, of the container's init."""
    fd = os.open(task.path("file"), os.O_RDONLY)
    task.detach()
    return lambda: os.pread(fd, 100, 0).decode()


def holder(held: Scenario) -> tuple[int, int]:
    """The process and the fd that the file of the mount is open in."""
    pid = look.tree(held.pid)[-1]
    (fd,) = [fd for fd, file in look.open_files(pid).items() if file.link.endswith("/file")]
    return pid, fd


@pytest.mark.detached
@pytest.mark.parametrize(
    "program", [hold_file, hold_in_nested, hold_passed_on], ids=lambda program: program.__name__
)
def test_init(scenario: MakeScenario, tmp_path: Path, program: Program) -> None:
    """The init or a child in a nested mount namespace holds the file; as many processes return."""
    held = scenario(Placement.NAMESPACE)
    with told_of_answers(held.ground):
        with new_pid_namespace():
            held.start(program)
        processes = len(look.tree(held.pid))
        for number in range(2):
            assert look.is_detached(*holder(held))
            held.dump().succeeded()
            pid_file = tmp_path / str(number)
            held.restore("--pidfile", str(pid_file)).succeeded()
            held.pid = int(pid_file.read_text())
            assert os.readlink(f"/proc/{held.pid}/ns/pid") != os.readlink("/proc/self/ns/pid")
            assert held.ask() == CONTENT
        assert look.is_detached(*holder(held))
        assert len(look.tree(held.pid)) == processes
