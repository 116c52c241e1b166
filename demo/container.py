"""A container of podman's, moved through an archive while its volume is unmounted inside."""

from __future__ import annotations

import os

from demo import telling
from demo.telling import note, step
from tests.integration.harness.agent import Check, Task
from tests.integration.harness.container import Container
from tests.integration.harness.engines import prepared_engines, sets_groups
from tests.integration.harness.placement import Placement


def _engine() -> str:
    """Podman on crun, if that one's containers can be restored here; else on runc."""
    return "podman-runc" if sets_groups("podman-crun") else "podman-crun"


def write_lines(task: Task) -> Check:
    """Appends a line to a file of the volume for each question; its working directory is there."""
    os.chdir(task.path("dir"))
    log = os.open(task.path("log"), os.O_RDWR | os.O_CREAT | os.O_APPEND)
    task.detach()

    def check() -> int:
        os.write(log, b"a line\n")
        return os.pread(log, 1000, 0).count(b"a line")

    return check


def demonstrate() -> None:
    """Run it; raises AssertionError when a step goes wrong."""
    print("A container whose volume is unmounted lazily inside\n")
    with (
        prepared_engines() as engines,
        Container(engines.get(_engine()), Placement.HOST_SOURCE) as held,
    ):
        _move(held)


def _move(held: Container) -> None:
    held.images = held.work / "archive.tar.gz"
    held.start(write_lines)
    assert held.ask() == 1
    before = telling.detached_files(held.pid)
    step(f"podman run: it writes to {held.ground.source}/tree/log, which no mount inside shows")
    held.checkpoint(plugin=False).failed("Can't lookup mount")
    note("podman container checkpoint without the plugin fails: Can't lookup mount")
    assert held.ask() == 2
    held.checkpoint().succeeded()
    step(f"podman container checkpoint --export {held.images.name}: the container is gone")
    held.restore(name=f"{held.name}-2").succeeded()
    step("podman container restore --import under another name")
    telling.table(before, telling.detached_files(held.pid))
    assert held.ask() == 3
    lines = (held.ground.source / "tree" / "log").read_text().splitlines()
    assert len(lines) == 3, lines
    note("and it goes on writing: 3 lines are in the file on the host")
