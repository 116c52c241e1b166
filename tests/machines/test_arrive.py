"""A further machine: what left the last one is restored, and may leave this one for the next.

What is refused for want of a setting is tried on the second machine alone.
"""

from __future__ import annotations

import os
import re
import select
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from ..integration import disks
from ..integration.harness import kernel, look
from ..integration.harness.container import Container
from ..integration.harness.criu import CriuRun, default_plugins
from ..integration.harness.engines import Engines, Oci, Podman
from ..integration.harness.placement import CONTENT, Placement
from ..integration.harness.scenario import DEADLINE, Scenario
from .leaving import NAMED, container_leaves, processes_leave
from .luggage import CARRIED, Luggage, assert_same, machine
from .programs import BINDS, ENGINES, LINE

# Which machine this is, from 1, and how many there are
STOP, STOPS = map(int, os.environ.get("CRIU_DETACHED_STOP", "0/0").split("/"))
VOLUMES = Path(f"/srv/volumes-{STOP}")  # on its root filesystem, and elsewhere on each


@pytest.fixture(scope="module", autouse=True)
def arrived(runner: None) -> None:
    """This is another machine than the last one."""
    last, here = Luggage(CARRIED).notes(), machine()
    assert last["root"] != here["root"] and last["boot"] != here["boot"]
    Luggage(CARRIED).note(**here)


def agents() -> Iterator[int]:
    """The processes that run a test's program, whatever they are children of."""
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            if look.is_agent(pid):
                yield pid
        except (FileNotFoundError, ProcessLookupError):
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
    """The process has this very file open, and has appended to it on each machine."""
    assert os.path.samestat(os.stat(f"/proc/{pid}/fd/{fd}"), log.stat())
    assert log.read_text() == STOP * LINE


@pytest.mark.parametrize("engine", ENGINES)
def test_container(
    engines: Engines,
    luggage: Callable[[str], Luggage],
    settings: Path,
    engine: str,
    tmp_path: Path,
) -> None:
    """Under another name, with its volumes at other places, as soon as settings tell of them."""
    bag = luggage(engine)
    notes = bag.notes()
    answer, work = notes["answer"], Path(notes["work"])
    volume = bag.unpack("volume", VOLUMES / engine)
    (volume / "tree" / "dir" / f"arrived-{STOP}").touch()
    logs, known, options = [volume / "tree" / "log"], "", []
    with Container(engines.get(engine), Placement.HOST_SOURCE, BINDS, work=work) as held:
        bag.unpack("base", held.ground.base)
        name = f"{held.name}-{STOP}"
        if isinstance(held.engine, Podman):
            held.images = bag.directory / "archive.tar.gz"
            held.engine.load_image(bag.directory / "image.tar")
            with tarfile.open(held.images) as archive:
                archive.extractall(tmp_path, filter="tar")
            images = tmp_path / "checkpoint"
            logs.append(held.engine.volume(NAMED) / "log")
            known = f"map {notes['named'][-1]} {held.engine.volume(NAMED)}\n"
            for directory in notes["named"]:  # podman's runtime wants to find it
                Path(directory).mkdir(parents=True)
        elif isinstance(held.engine, Oci):
            bag.unpack("bundle", held.engine.bundle(name))
            images = bag.unpack("images", held.images)
        assert notes["volume"] in shown(images)
        if STOP == 2:
            settings.write_text(known)
            missing = "can't open .* on mount .*: No such file or directory"
            refused(held.restore(name=name), missing)
            held.engine.remove(name)
            options = ["--ignore-volumes"] if known else []  # podman has made it again by now
        settings.write_text(f"{known}map {notes['volume']} {volume}\n")
        assert str(volume) in shown(images)
        held.restore(*options, name=name).succeeded()
        assert_same(notes["seen"], held.seen())
        answer["here"] = sorted([*answer["here"], f"arrived-{STOP}"])
        assert held.ask() == answer
        for fd, log in zip(answer["logs"], logs, strict=True):
            writes_to(held.pid, fd, log)
        if STOP < STOPS:
            container_leaves(held, bag, volume, answer, notes["named"])


def test_processes(luggage: Callable[[str], Luggage], settings: Path, tmp_path: Path) -> None:
    """The disk has another name here; what was in memory alone has come with the images."""
    bag = luggage("criu")
    notes = bag.notes()
    answer, work = notes["answer"], Path(notes["work"])
    volume = bag.unpack("volume", VOLUMES / "criu")
    content = f"{STOP}{CONTENT[1:]}"
    (volume / "tree" / "file").write_text(content)
    image = tmp_path / "disk"
    image.write_bytes((bag.directory / "disk").read_bytes())
    with ExitStack() as stack:
        for number in range(1, STOP):
            other = tmp_path / f"other-{number}"
            disks.make_filesystem(other, "ext4")
            stack.enter_context(disks.loop_device(other))
        held = stack.enter_context(Scenario(binds=BINDS, work=work, travels=True))
        bag.unpack("images", held.images)
        if STOP == 2:
            refused(held.restore(), f"bind source {notes['volume']} cannot be opened")
        settings.write_text(f"map {notes['volume']} {volume}\n")
        if STOP == 2:
            refused(held.restore(), "no block device carries")
        device = stack.enter_context(disks.loop_device(image))
        assert device != notes["device"]
        held.restore().succeeded()
        assert_same(notes["seen"], look.seen(held.pid))
        answer["tree"][2] = content
        assert held.ask() == answer
        held.assert_detached([answer["tree"][0]])
        if STOP < STOPS:
            processes_leave(held, bag, volume, disks.Disk(device, "ext4", image), answer)
        held.kill()
        kernel.mount(device, held.ground.source, "ext4")
        assert (held.ground.source / "tree" / "log").read_text() == STOP * LINE
        kernel.umount2(held.ground.source)
