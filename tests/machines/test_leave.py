"""The first machine: what is checkpointed here is restored by test_arrive.py on the next one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ..integration import disks
from ..integration.harness import kernel, look
from ..integration.harness.container import Container
from ..integration.harness.engines import Engines, Oci, Podman
from ..integration.harness.placement import Placement, mount_tmpfs, populate_tree
from ..integration.harness.scenario import Scenario
from .luggage import CARRIED, Luggage, machine, noted
from .programs import BINDS, ENGINES, hold_much, hold_volume

# Process ids that are free on a machine that has just been started.
FIRST_PID = 20000


@pytest.fixture(scope="module", autouse=True)
def leaving(runner: None) -> None:
    """Pids are not those of the next machine."""
    Luggage(CARRIED).note(**machine())
    Path("/proc/sys/kernel/ns_last_pid").write_text(str(FIRST_PID))


@pytest.mark.parametrize("engine", ENGINES)
def test_container(engines: Engines, luggage: Callable[[str], Luggage], engine: str) -> None:
    """A volume that was unmounted lazily inside; its source is on the host alone."""
    bag = luggage(engine)
    with Container(engines.get(engine), Placement.HOST_SOURCE, BINDS) as held:
        options = []
        if isinstance(held.engine, Podman):
            held.images = bag.directory / "archive.tar.gz"
            options = ["--compress=gzip"]
            held.engine.save_image(bag.directory / "image.tar")
        held.start(hold_volume)
        answer, seen = held.ask(), noted(held.seen())
        held.checkpoint(*options).succeeded()
        if isinstance(held.engine, Oci):
            bag.pack("bundle", held.engine.bundle(held.name))
            bag.pack("images", held.images)
        bag.pack("volume", held.ground.source)
        bag.pack("base", held.ground.base)
        bag.note(work=str(held.work), name=held.name, answer=answer, seen=seen)


def test_processes(luggage: Callable[[str], Luggage], tmp_path: Path) -> None:
    """Two processes of criu alone; their disk and their memory are mounted nowhere."""
    bag = luggage("criu")
    with (
        disks.disk(tmp_path, "ext4") as disk,
        Scenario(binds=BINDS, mount_source=disk.mount, travels=True) as held,
    ):
        volume = held.work / "volume"
        volume.mkdir()
        mount_tmpfs(volume)
        try:
            populate_tree(volume)
            held.start(hold_much, volume=str(volume))
            kernel.umount2(held.ground.source, kernel.MNT_DETACH)
            answer, seen = held.ask(), noted(look.seen(held.pid))
            held.dump().succeeded()
            bag.pack("images", held.images)
            bag.pack("volume", volume)
            disk.carry(bag.directory / "disk")
        finally:
            kernel.umount2(volume, kernel.MNT_DETACH)
        bag.note(work=str(held.work), device=disk.device, answer=answer, seen=seen)
