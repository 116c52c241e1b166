"""Device nodes that CRIU dumps by itself as it would a file: they are opened by their path."""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
from pathlib import Path

import pytest

from ..conftest import MakeScenario
from ..harness.agent import Check, Task
from ..harness.placement import Placement, populate_tree

MEMORY = {"full": 7, "random": 8, "urandom": 9}


def populate_devices(source: Path) -> None:
    """The common tree and more of the memory devices."""
    populate_tree(source)
    for name, minor in MEMORY.items():
        os.mknod(source / "tree" / name, 0o20666, os.makedev(1, minor))


def hold_devices(task: Task) -> Check:
    """All memory devices, and a directory to open them in anew."""
    fds = {name: os.open(task.path(name), os.O_RDWR) for name in ("full", "random", "urandom")}
    directory = os.open(task.path(), os.O_RDONLY)
    task.detach()

    def write_to_full(fd: int) -> int:
        try:
            return os.write(fd, b"x")
        except OSError as error:
            return -(error.errno or 0)

    def check() -> list[object]:
        again = os.open("full", os.O_WRONLY, dir_fd=directory)
        found = [write_to_full(fds["full"]), write_to_full(again)]
        os.close(again)
        return [*found, *(len(os.read(fds[name], 8)) for name in ("random", "urandom"))]

    return check


@pytest.mark.covers("character_device")
def test_memory_devices(scenario: MakeScenario, placement: Placement) -> None:
    held = scenario(placement, populate=populate_devices).start(hold_devices).cycle()
    assert held.ask() == [-errno.ENOSPC, -errno.ENOSPC, 8, 8]


def hold_zero_mapped(task: Task, flags: int) -> Check:
    """Memory from the zero device, as programs got it before MAP_ANONYMOUS."""
    fd = os.open(task.path("zero"), os.O_RDWR)
    mapped = mmap.mmap(fd, 8192, flags=flags)
    mapped[:4] = b"data"

    def child() -> Check:
        def check() -> str:
            before = mapped[:4].decode()
            mapped[:4] = b"from"
            return before

        return check

    ask_child = task.fork(child)
    task.detach()
    return lambda: [ask_child(), mapped[:4].decode(), mapped[4096]]


@pytest.mark.parametrize("flags", [mmap.MAP_PRIVATE, mmap.MAP_SHARED], ids=["private", "shared"])
def test_zero_mapped(scenario: MakeScenario, placement: Placement, flags: int) -> None:
    held = scenario(placement).start(hold_zero_mapped, flags=flags).cycle()
    assert held.ask() == ["data", "from" if flags == mmap.MAP_SHARED else "data", 0]


def hold_block_device(task: Task) -> Check:
    """A block device, of whatever size."""
    fd = os.open(task.path("block"), os.O_RDONLY | os.O_NONBLOCK)
    return lambda: os.fstat(fd).st_rdev


@pytest.mark.plain
def test_block_device_attached(scenario: MakeScenario) -> None:
    """CRIU gives block devices to plugins alone; this one leaves those of attached mounts."""
    find = subprocess.run(["losetup", "--find"], check=False, capture_output=True, text=True)
    if find.returncode:
        pytest.skip("this kernel gives no loop device")
    device = os.stat(find.stdout.strip()).st_rdev

    def populate(source: Path) -> None:
        populate_tree(source)
        os.mknod(source / "tree" / "block", 0o60666, device)

    held = scenario(attached=True, populate=populate).start(hold_block_device)
    held.dump(plugin=False).failed("Can't dump file")
    assert held.ask() == device
