"""runc, crun and podman: containers whose processes hold files on detached mounts."""

from __future__ import annotations

import mmap
import os
from typing import Any

import pytest

from ..conftest import in_vm
from .conftest import MakeContainer
from .harness import kernel
from .harness.agent import Check, Task
from .harness.placement import CONTENT, Bind, Placement

pytestmark = pytest.mark.detached


def hold_life(task: Task) -> Check:
    """On one mount files, a directory, the working directory, a mapping; another is read-only."""
    file = os.open(task.path("file"), os.O_RDWR | os.O_APPEND)
    os.read(file, 10)
    top = os.open(task.path(), os.O_RDONLY | os.O_DIRECTORY)
    os.chdir(task.path("dir"))
    fifo = os.open(task.path("fifo"), os.O_RDWR | os.O_NONBLOCK)
    os.write(fifo, b"waiting")
    other = os.open(task.path("other"), os.O_RDWR)
    shared = mmap.mmap(other, 6)
    deleted = os.open(task.path("deleted"), os.O_RDWR | os.O_CREAT)
    os.write(deleted, b"no name")
    os.unlink(task.path("deleted"))
    fixed = os.open(task.path("file", 1), os.O_RDONLY)
    ask_child = task.fork(lambda: lambda: os.pread(file, 10, 0).decode())
    task.detach()

    def check() -> dict[str, Any]:
        waiting = os.read(fifo, 100)
        os.write(fifo, waiting)
        shared[:1] = b"S"
        return {
            "position": os.lseek(file, 0, os.SEEK_CUR),
            "here": os.listdir("."),
            "top": sorted(os.listdir(top)),
            "fifo": waiting.decode(),
            "shared": os.pread(other, 6, 0).decode(),
            "deleted": [os.fstat(deleted).st_nlink, os.pread(deleted, 10, 0).decode()],
            "fixed": os.pread(fixed, 100, 0).decode(),
            "read-only": bool(os.fstatvfs(fixed).f_flag & os.ST_RDONLY),
            "child": ask_child(),
        }

    return check


SEEN_NATIVELY = pytest.mark.native_only("a container takes a minute or two under emulation")


@pytest.mark.parametrize(
    ("engine", "placement"),
    [
        ("runc", Placement.NAMESPACE),
        ("crun", Placement.HOST_SOURCE),
        ("podman-runc", Placement.HOST_SOURCE),
        pytest.param("runc", Placement.HOST_SOURCE, marks=SEEN_NATIVELY),
        pytest.param("crun", Placement.NAMESPACE, marks=SEEN_NATIVELY),
        pytest.param("podman-crun", Placement.NAMESPACE, marks=SEEN_NATIVELY),
    ],
)
def test_cycle(container: MakeContainer, engine: str, placement: Placement) -> None:
    """Volumes are unmounted lazily inside; the source is another one, or on the host alone."""
    held = container(engine, placement, [Bind(), Bind(flags=kernel.MS_RDONLY)]).start(hold_life)
    answer = held.ask()
    assert answer["read-only"] and answer["fixed"] == CONTENT
    if not in_vm():
        held.checkpoint(plugin=False).failed("Can't lookup mount")
        held.checkpoint("--leave-running").succeeded()
        assert held.ask() == answer
    held.cycle()
    assert held.ask() == answer
