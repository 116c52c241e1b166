"""More files than are recorded one by one: none is lost."""

from __future__ import annotations

import os

import pytest

from ..conftest import MakeScenario
from ..harness.agent import Check, Task
from ..harness.placement import Placement

FILES = 300


def hold_many(task: Task) -> Check:
    """Each file has its number in it; ten in turn share a directory, the last ones do not."""
    directories = ["", "one/", "one/deeper/", "two/"]
    for directory in directories[1:]:
        os.mkdir(task.path(directory))
    fds = []
    for number in range(FILES):
        directory = directories[(number if number > FILES / 2 else number // 10) % 4]
        fd = os.open(task.path(f"{directory}many{number}"), os.O_CREAT | os.O_RDWR, 0o600)
        os.write(fd, b"%d" % number)
        fds.append(fd)
    task.detach()
    return lambda: [int(os.pread(fd, 10, 0)) for fd in fds] == list(range(len(fds)))


@pytest.mark.covers("file")
def test_all_come_back(scenario: MakeScenario, placement: Placement) -> None:
    held = scenario(placement).start(hold_many)
    held.cycle()
    assert held.ask() is True
