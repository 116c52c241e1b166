"""How travellers leave a machine: checkpointed, with all packed that the next one needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..integration.disks import Disk
from ..integration.harness import look
from ..integration.harness.container import Container
from ..integration.harness.engines import Oci, Podman
from ..integration.harness.scenario import Scenario
from .luggage import Luggage, noted

NAMED = "named"  # a volume of podman's, which comes with its archive


def container_leaves(
    held: Container, bag: Luggage, volume: Path, answer: Any, named: Sequence[str] = ()
) -> None:
    """Checkpoint a container.

    Args:
        held: the container.
        bag: what it takes along.
        volume: where this machine has its volume.
        answer: what it answered last.
        named: where earlier machines had podman's volume.
    """
    seen, options = noted(held.seen()), []
    if isinstance(held.engine, Podman):
        held.images = bag.directory / "archive.tar.gz"
        options = ["--compress=gzip"]
        named = [*named, str(held.engine.volume(NAMED))]
    else:
        held.images = held.work / "leaving"
    held.checkpoint(*options).succeeded()
    if isinstance(held.engine, Oci):
        bag.pack("bundle", held.engine.bundle(held.name))
        bag.pack("images", held.images)
    bag.pack("volume", volume)
    bag.pack("base", held.ground.base)
    bag.note(work=str(held.work), volume=str(volume), named=named, answer=answer, seen=seen)


def processes_leave(held: Scenario, bag: Luggage, volume: Path, disk: Disk, answer: Any) -> None:
    """Dump processes of criu alone; their disk is mounted nowhere.

    Args:
        held: the processes.
        bag: what they take along.
        volume: where this machine has the source of their anonymous mount.
        disk: the disk.
        answer: what they answered last.
    """
    seen = noted(look.seen(held.pid))
    held.dump().succeeded()
    bag.pack("images", held.images)
    bag.pack("volume", volume)
    disk.carry(bag.directory / "disk")
    bag.note(work=str(held.work), volume=str(volume), device=disk.device, answer=answer, seen=seen)
