"""Devices that CRIU hands to plugins: they come back when their node is on a detached mount."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from .. import disks
from ..conftest import MakeScenario
from ..harness.agent import Check, Task
from ..harness.placement import Placement, populate_tree

LOOP_CONTROL = os.makedev(10, 237)
LOOP_CTL_GET_FREE = 0x4C82
SECTORS = 8


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[int]:
    """The device number of a block device whose first bytes are known."""
    image = tmp_path / "image"
    image.write_bytes(b"0123456789".ljust(SECTORS * 512, b"."))
    with disks.loop_device(image) as device:
        yield os.stat(device).st_rdev


def hold_devices(task: Task) -> Check:
    """A block device read up to its third byte, its dup, and a character device."""
    block = os.open(task.path("block"), os.O_RDWR | os.O_NONBLOCK)
    os.read(block, 3)
    duplicate = os.dup(block)
    os.set_inheritable(duplicate, True)
    char = os.open(task.path("char"), os.O_RDWR)
    task.detach()

    def check() -> list[object]:
        where = os.lseek(duplicate, 0, os.SEEK_CUR)
        read = os.read(block, 3).decode()
        os.lseek(duplicate, where, os.SEEK_SET)
        same = os.fstat(block).st_rdev == os.fstat(duplicate).st_rdev
        return [where, read, same, fcntl.ioctl(char, LOOP_CTL_GET_FREE) >= 0]

    return check


@pytest.mark.covers("block_device", "character_device")
@pytest.mark.detached  # CRIU itself can't dump them
def test_devices(scenario: MakeScenario, placement: Placement, loop: int) -> None:
    def populate(source: Path) -> None:
        populate_tree(source)
        os.mknod(source / "tree" / "block", 0o60666, loop)
        os.mknod(source / "tree" / "char", 0o20666, LOOP_CONTROL)

    held = scenario(placement, populate=populate).start(hold_devices)
    assert held.ask() == [3, "345", True, True]
    held.cycle()
    assert held.ask() == [3, "345", True, True]
    held.cycle()
    assert held.ask() == [3, "345", True, True]


def hold_attached_device(task: Task) -> Check:
    """A character device of the machine's own."""
    fd = os.open("/dev/loop-control", os.O_RDWR)
    return lambda: fd


def test_attached_device(scenario: MakeScenario) -> None:
    """On an attached mount they are none of the plugin's business, and CRIU fails as ever."""
    try:
        os.close(os.open("/dev/loop-control", os.O_RDWR))
    except OSError as error:
        pytest.skip(f"this kernel gives no loop device: {error}")
    held = scenario(attached=True).start(hold_attached_device)
    plain = held.dump(plugin=False).failed("Can't dump file")
    steered = held.dump(plugin=True).failed("Can't dump file")
    assert len(steered.errors()) == len(plain.errors())


def hold_character_device(task: Task) -> Check:
    """A character device that CRIU does not know, alone on its mount."""
    char = os.open(task.path("char"), os.O_RDWR)
    task.detach()
    return lambda: fcntl.ioctl(char, LOOP_CTL_GET_FREE) >= 0


@pytest.mark.covers("character_device")
@pytest.mark.detached
def test_character_device_alone(scenario: MakeScenario, loop: int) -> None:
    def populate(source: Path) -> None:
        populate_tree(source)
        os.mknod(source / "tree" / "char", 0o20666, LOOP_CONTROL)

    held = scenario(populate=populate).start(hold_character_device)
    held.cycle()
    assert held.ask() is True
