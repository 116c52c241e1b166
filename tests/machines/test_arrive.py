"""The next machine: what test_leave.py has checkpointed is restored from what was carried over."""

from __future__ import annotations

import os
import re
import select
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from ..integration import disks
from ..integration.harness import kernel, look
from ..integration.harness.container import Container
from ..integration.harness.criu import CriuRun, default_plugins
from ..integration.harness.engines import Engines, Oci, Podman
from ..integration.harness.placement import CONTENT, Placement
from ..integration.harness.scenario import DEADLINE, Scenario
from .luggage import CARRIED, Luggage, assert_same, machine
from .programs import BINDS, ENGINES, LINE

VOLUMES = Path("/srv/volumes")  # where this machine has them: on its root filesystem


@pytest.fixture(scope="module", autouse=True)
def arrived(runner: None) -> None:
    """This is another machine than the last one."""
    last, here = Luggage(CARRIED).notes(), machine()
    assert last["root"] != here["root"] and last["boot"] != here["boot"]


def agents() -> Iterator[int]:
    """The processes that run a test's program, whatever they are children of."""
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            if look.is_agent(pid):
                yield pid
        except FileNotFoundError:
            continue


def refused(run: CriuRun, pattern: str) -> None:
    """The restore failed, the plugin said why and nothing else, and no process is left."""
    run.failed("criu-detached: ")
    said = [line for line in run.errors() if "criu-detached: " in line]
    assert all(re.search(pattern, line) for line in said), run.report()
    for pid in agents():  # it was killed and has not ended yet
        with suppress(ProcessLookupError):
            select.select([os.pidfd_open(pid)], [], [], DEADLINE)
    assert not list(agents())


def shown(images: Path) -> str:
    """What criu-detached tells of a dump."""
    command = default_plugins() / "criu_detached" / "criu-detached"
    return subprocess.run(
        [command, "show", images], check=True, capture_output=True, text=True
    ).stdout


def writes_to(pid: int, fd: int, log: Path) -> None:
    """The process has this very file open, and has appended to it on both machines."""
    assert os.path.samestat(os.stat(f"/proc/{pid}/fd/{fd}"), log.stat())
    assert log.read_text() == 2 * LINE


@pytest.mark.parametrize("engine", ENGINES)
def test_container(
    engines: Engines, luggage: Callable[[str], Luggage], settings: Path, engine: str, tmp_path: Path
) -> None:
    """Under another name, with its volume at another place, as soon as a setting tells of it."""
    bag = luggage(engine)
    notes = bag.notes()
    answer, work = notes["answer"], Path(notes["work"])
    volume = bag.unpack("volume", VOLUMES / engine)
    (volume / "tree" / "dir" / "arrived").touch()
    with Container(engines.get(engine), Placement.HOST_SOURCE, BINDS, work=work) as held:
        bag.unpack("base", held.ground.base)
        name = f"{notes['name']}-2"
        if isinstance(held.engine, Podman):
            held.images = bag.directory / "archive.tar.gz"
            held.engine.load_image(bag.directory / "image.tar")
            with tarfile.open(held.images) as archive:
                archive.extractall(tmp_path, filter="tar")
            images = tmp_path / "checkpoint"
        elif isinstance(held.engine, Oci):
            bag.unpack("bundle", held.engine.bundle(name))
            images = bag.unpack("images", held.images)
        assert str(held.ground.source) in shown(images)
        refused(held.restore(name=name), "can't open .* on mount .*: No such file or directory")
        held.engine.remove(name)
        settings.write_text(f"map {held.ground.source} {volume}\n")
        assert str(volume) in shown(images)
        held.restore(name=name).succeeded()
        assert_same(notes["seen"], held.seen())
        assert held.ask() == answer | {"here": sorted([*answer["here"], "arrived"])}
        writes_to(held.pid, answer["log"], volume / "tree" / "log")


def test_processes(luggage: Callable[[str], Luggage], settings: Path, tmp_path: Path) -> None:
    """The disk has another name here; what was in memory alone has come with the images."""
    bag = luggage("criu")
    notes = bag.notes()
    answer, work = notes["answer"], Path(notes["work"])
    volume = bag.unpack("volume", VOLUMES / "criu")
    (volume / "tree" / "file").write_text(CONTENT.upper())
    image = tmp_path / "disk"
    image.write_bytes((bag.directory / "disk").read_bytes())
    other = tmp_path / "other"
    disks.make_filesystem(other, "ext4")
    with (
        disks.loop_device(other),
        Scenario(binds=BINDS, work=work, travels=True) as held,
    ):
        bag.unpack("images", held.images)
        refused(held.restore(), f"bind source {work}/volume cannot be opened")
        settings.write_text(f"map {work}/volume {volume}\n")
        refused(held.restore(), "no block device carries")
        with disks.loop_device(image) as device:
            assert device != notes["device"]
            held.restore().succeeded()
            tree, names, content = answer["tree"]
            assert content == CONTENT
            assert_same(notes["seen"], look.seen(held.pid))
            assert held.ask() == answer | {"tree": [tree, names, CONTENT.upper()]}
            held.assert_detached([tree])
            held.kill()
            kernel.mount(device, held.ground.source, "ext4")
            assert (held.ground.source / "tree" / "log").read_text() == 2 * LINE
            kernel.umount2(held.ground.source)
