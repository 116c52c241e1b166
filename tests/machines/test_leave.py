"""The first machine: what is checkpointed here is restored by test_arrive.py on the next one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ..integration import disks
from ..integration.harness import kernel
from ..integration.harness.container import Container
from ..integration.harness.engines import Engines, Podman
from ..integration.harness.placement import Placement, mount_tmpfs, populate_tree
from ..integration.harness.scenario import Scenario
from .leaving import NAMED, container_leaves, processes_leave
from .luggage import CARRIED, Luggage, machine
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
    """Volumes that were unmounted lazily inside; their sources are on the host alone."""
    bag = luggage(engine)
    made = engines.get(engine)
    named, options = "", []
    if isinstance(made, Podman):
        made.save_image(bag.directory / "image.tar")
        named, options = "/named", [f"--volume={NAMED}:/named"]
    with Container(made, Placement.HOST_SOURCE, BINDS, options=options) as held:
        held.start(hold_volume, named=named)
        container_leaves(held, bag, held.ground.source, held.ask())


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
            processes_leave(held, bag, volume, disk, held.ask())
        finally:
            kernel.umount2(volume, kernel.MNT_DETACH)
