"""What the user says of a file goes before what the plugin would do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ..conftest import MakeScenario
from ..harness import look
from ..harness.agent import Check, Task
from ..harness.placement import CONTENT, Placement


def hold_two_files(task: Task) -> Check:
    """Two files of one mount, both read up to their second byte."""
    fds = [os.open(task.path(name), os.O_RDONLY) for name in ("file", "other")]
    for fd in fds:
        os.read(fd, 2)
    task.detach()
    return lambda: [[fd, os.pread(fd, 100, 0).decode(), os.lseek(fd, 0, 1)] for fd in fds]


@pytest.mark.detached
def test_inherited_instead(scenario: MakeScenario, placement: Placement, tmp_path: Path) -> None:
    """One file is the user's by its key and comes from an fd of his; the other is the plugin's."""
    held = scenario(placement).start(hold_two_files)
    (first, *_), (second, *_) = held.ask()
    inode = os.stat(f"/proc/{held.pid}/fd/{first}").st_ino
    key = f"file[{look.open_files(held.pid)[first].mnt_id:x}:{inode:x}]"
    instead = tmp_path / "instead"
    instead.write_text(CONTENT.upper())  # CRIU wants the size to be the same
    held.dump("--external", key).succeeded()
    give_fd = ["bash", "-c", f'exec "$@" 9<{instead}', "bash"]
    held.restore("--inherit-fd", f"fd[9]:{key}", prefix=give_fd).succeeded()
    assert held.ask() == [[first, CONTENT.upper(), 2], [second, "other\n", 2]]
    held.assert_detached([second])
    assert not look.is_detached(held.pid, first)
    assert (held.ground.source / "tree" / "file").read_text() == CONTENT
