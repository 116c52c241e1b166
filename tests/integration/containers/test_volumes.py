"""Named volumes of podman: it puts them into an archive, and makes them again from it."""

from __future__ import annotations

import os
from typing import Any

import pytest

from ..conftest import MakeContainer
from ..harness.agent import Check, Task
from ..harness.engines import Podman, plugin_settings
from ..harness.placement import Placement
from ..harness.programs import run

pytestmark = [
    pytest.mark.detached,
    pytest.mark.native_only("tests/machines has a named volume there"),
]

POINT = "/named"
LINE = "one more\n"  # what a check appends to the log
KINDS = {"directory": [], "tmpfs": ["--opt=type=tmpfs", "--opt=device=tmpfs"]}


def hold_named(task: Task, point: str) -> Check:
    """A log, a directory and a deleted file on a volume; each check appends to the log."""
    os.mkdir(point + "/dir")
    os.chdir(point + "/dir")
    log = os.open("../log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    deleted = os.open("deleted", os.O_RDWR | os.O_CREAT)
    os.write(deleted, b"no name")
    os.unlink("deleted")
    run("umount", "--lazy", "--no-mtab", point)

    def check() -> list[Any]:
        os.write(log, LINE.encode())
        return [os.listdir("."), os.pread(deleted, 10, 0).decode()]

    return check


@pytest.mark.parametrize(
    ("engine", "kind"),
    [("podman-crun", "directory"), ("podman-runc", "tmpfs")],
)
def test_named(container: MakeContainer, engine: str, kind: str) -> None:
    """Exported twice: the volume is left where it is, then it is made again from the archive."""
    podman = container(engine).engine
    assert isinstance(podman, Podman)
    name = f"{engine}-{kind}"
    podman.call("volume", "create", *KINDS[kind], name)
    log = podman.volume(name) / "log"
    held = container(engine, Placement.HOST_SOURCE, [], options=[f"--volume={name}:{POINT}"])
    held.start(hold_named, point=POINT)
    answer = held.ask()
    if kind == "directory":
        held.images = held.work / "first.tar"
        held.checkpoint().succeeded()
        moved = f"{held.name}-2"
        assert "already exists" in held.restore(name=moved).log
        held.restore("--ignore-volumes", name=moved).succeeded()
        assert held.ask() == answer
    held.images = held.work / "second.tar"
    held.checkpoint().succeeded()
    podman.remove(*held.names)
    podman.call("volume", "rm", name)
    if kind == "tmpfs":
        held.restore(name=f"{held.name}-3").failed('another tmpfs .* by the setting "map"')
        podman.remove(held.name)
        podman.call("volume", "rm", name)
    with plugin_settings(*([f"map {log.parent} {log.parent}"] if kind == "tmpfs" else [])):
        held.restore(name=f"{held.name}-4").succeeded()
    written = log.read_text()
    assert held.ask() == answer
    assert log.read_text() == written + LINE
    podman.remove(*held.names)
    podman.call("volume", "rm", name)
