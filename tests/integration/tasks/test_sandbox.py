"""A sandbox of bubblewrap's: pivot_root, the old root unmounted lazily, and fds kept."""

from __future__ import annotations

import os
import sys

import pytest

from ..conftest import MakeScenario
from ..harness import look
from ..harness.agent import Check, Task
from ..harness.placement import CONTENT, Placement

SANDBOXED = """
import os, sys
while os.read(0, 1):
    os.write(1, os.pread(int(sys.argv[1]), 100, 0) + os.fsencode(os.getcwd()))
"""


def hold_in_sandbox(task: Task) -> Check:
    """The sandboxed process inherits a file of a mount that the one outside then unmounts."""
    file = os.open(task.path("file"), os.O_RDONLY)
    os.set_inheritable(file, True)
    ask_read, ask_write = os.pipe()
    answer_read, answer_write = os.pipe()
    python = [os.path.realpath(sys.executable), "-I", "-S", "-c", SANDBOXED, str(file)]
    command = ["bwrap", "--bind", "/", "/", "--tmpfs", "/run", "--chdir", "/run", *python]
    streams = [(os.POSIX_SPAWN_DUP2, ask_read, 0), (os.POSIX_SPAWN_DUP2, answer_write, 1)]
    os.posix_spawnp("bwrap", command, os.environ, file_actions=streams)
    os.close(ask_read)
    os.close(answer_write)
    os.close(file)

    def check() -> list[object]:
        os.write(ask_write, b"?")
        return [file, os.read(answer_read, 200).decode()]

    check()  # it is there now
    task.detach()
    return check


@pytest.mark.detached
@pytest.mark.covers("file")
def test_bubblewrap(scenario: MakeScenario) -> None:
    held = scenario(Placement.NAMESPACE).start(hold_in_sandbox)
    file, said = held.ask()
    assert said == f"{CONTENT}/run"
    held.cycle()
    assert held.ask() == [file, said]
    sandboxed = look.tree(held.pid)[-1]  # below bubblewrap itself
    assert os.readlink(f"/proc/{sandboxed}/ns/mnt") != os.readlink(f"/proc/{held.pid}/ns/mnt")
