"""More mounts than anybody has: the plugin's work grows with them, and not with their square."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ..conftest import MakeScenario
from ..harness import kernel
from ..harness.agent import Check, Task
from ..harness.placement import Bind, Placement


@contextmanager
def attached(source: Path, directory: Path, number: int) -> Iterator[None]:
    """Many mounts of what is the source of the detached ones too."""
    kernel.mount("many", directory, "tmpfs")
    try:
        for each in range(max(number, 1)):
            point = directory / str(each)
            point.mkdir()
            kernel.bind(source / "tree" / "dir", point)
        # The source itself comes after all of them.
        kernel.bind(source, directory / "0")
        kernel.umount2(source, kernel.MNT_DETACH)
        kernel.bind(directory / "0", source)
        kernel.umount2(directory / "0", kernel.MNT_DETACH)
        yield
    finally:
        kernel.umount2(directory, kernel.MNT_DETACH)


def hold_many(task: Task) -> Check:
    """A file on each of many mounts."""
    fds = [os.open(task.path("file", mount), os.O_RDONLY) for mount in range(len(task.points))]
    task.detach()
    return lambda: len([fd for fd in fds if os.pread(fd, 10, 0) == b"0123456789"])


@pytest.mark.detached
def test_many(scenario: MakeScenario, tmp_path: Path) -> None:
    """2,000 mounts of the same filesystem, and 50 detached ones: minutes, if each met each."""
    held = scenario(Placement.HOST, [Bind() for _ in range(50)]).start(hold_many)
    with attached(held.ground.source, tmp_path, 2000):
        held.cycle()
    assert held.ask() == 50
