"""CRIU restores tasks at the same time; those that were on one mount are on one mount again."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from ..conftest import MakeScenario
from ..harness import kernel, look
from ..harness.agent import Check, Task
from ..harness.placement import Bind, Placement

PROCESSES = 10


def hold_in_many(task: Task) -> Check:
    """The parent holds nothing; each child opens files of its own on both mounts."""

    def child() -> Check:
        fds = [os.open(task.path("file", mount), os.O_RDONLY) for mount in (0, 1)]
        fds.append(os.open(task.path("dir"), os.O_RDONLY))
        return lambda: [os.read(fds[0], 2).decode(), os.listdir(fds[2])]

    asks = [task.fork(child) for _ in range(PROCESSES)]
    task.detach()
    return lambda: [ask() for ask in asks]


@pytest.mark.covers("file", "directory")
def test_one_mount(scenario: MakeScenario, placement: Placement) -> None:
    held = scenario(placement, [Bind(), Bind()]).start(hold_in_many).cycle()
    assert held.ask() == [["01", ["inner"]]] * PROCESSES
    files = [file for pid in look.tree(held.pid) for file in look.open_files(pid).values()]
    used = {file.mnt_id for file in files if file.link.endswith(("/file", "/dir"))}
    assert len(used) == 2


@pytest.mark.detached
@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
def test_killed_in_between(scenario: MakeScenario, tmp_path: Path) -> None:
    """The task that realises a mount dies, and the others wait for it: CRIU ends them all."""
    binds = [Bind(flags=kernel.MS_RDONLY), Bind(flags=kernel.MS_RDONLY)]
    held = scenario(Placement.NAMESPACE, binds).start(hold_in_many)
    held.dump().succeeded()
    trace = tmp_path / "trace"
    call = "mount_setattr"
    strace = ["strace", "--follow-forks", f"--output={trace}", f"--trace={call}"]
    held.restore(prefix=[*strace, f"--inject={call}:signal=KILL:when=1"]).failed("killed by signal")
    assert call in trace.read_text()
    held.assert_gone()
    held.restore().succeeded()
    assert held.ask() == [["01", ["inner"]]] * PROCESSES
