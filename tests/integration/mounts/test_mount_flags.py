"""The flags of a detached mount are its own, not its source's, and come back."""

from __future__ import annotations

import os

import pytest

from ..conftest import MakeScenario
from ..harness import kernel, look
from ..harness.agent import Check, Task
from ..harness.placement import SUBDIRECTORY, Bind, Placement
from ..harness.scenario import Scenario

FLAGS = (
    0,
    kernel.MS_RDONLY,
    kernel.MS_NOSUID | kernel.MS_NODEV,
    kernel.MS_NOEXEC | kernel.MS_NOATIME,
    kernel.MS_NODIRATIME | kernel.MS_RELATIME,
    kernel.MS_STRICTATIME,
    kernel.MS_NOSYMFOLLOW | kernel.MS_RDONLY,
)


def hold_directories(task: Task) -> Check:
    """The top directory of each mount."""
    tops = [os.open(task.path("", mount), os.O_RDONLY) for mount in range(len(task.points))]
    task.detach()

    def attempt(top: int, name: str, flags: int) -> int:
        try:
            os.close(os.open(name, flags, dir_fd=top))
        except OSError as error:
            return error.errno or -1
        return 0

    def check() -> list[list[int]]:
        wanted = (("file", os.O_WRONLY), ("link", os.O_RDONLY), ("null", os.O_RDONLY))
        return [[attempt(top, name, flags) for name, flags in wanted] for top in tops]

    return check


def flags_of(held: Scenario) -> list[tuple[int, int | None]]:
    """The flags of each mount: as fstatvfs tells them, and as statmount does from 7.0."""
    found = []
    for fd in sorted(look.open_files(held.pid)):
        answer = look.mount_of(held.pid, fd)
        found.append((look.mount_flags(held.pid, fd), answer.mnt_attr if answer else None))
    return found


@pytest.mark.covers("directory")
@pytest.mark.detached  # CRIU loses nosymfollow where it restores an attached mount itself
def test_flags(scenario: MakeScenario, placement: Placement) -> None:
    held = scenario(placement, [Bind(SUBDIRECTORY, flags) for flags in FLAGS])
    held.start(hold_directories)
    before, behaviour = flags_of(held), held.ask()
    assert len(set(before)) >= len(FLAGS)
    held.cycle()
    assert flags_of(held) == before
    assert held.ask() == behaviour
