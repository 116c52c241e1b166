"""On overlayfs inode numbers come from several layers, and file handles are not to be had."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ..conftest import MakeScenario
from ..harness import kernel
from ..harness.agent import Check, Task
from ..harness.placement import SUBDIRECTORY, Bind, Placement

FILES = 12


@pytest.fixture
def mount_overlay(tmp_path: Path) -> Callable[[Path], None]:
    """Mounts an overlay of two tmpfs, whose inode numbers both start from the same one."""
    return lambda source: mount_layers(source, tmp_path / source.parent.name, ["lower", "upper"])


@pytest.fixture
def mount_overlay_of_one(tmp_path: Path) -> Callable[[Path], None]:
    """Mounts an overlay with both layers on one tmpfs, so that inode numbers are unique."""
    return lambda source: mount_layers(source, tmp_path / source.parent.name, ["."])


def mount_layers(source: Path, layers: Path, filesystems: list[str]) -> None:
    """Make the layers on tmpfs of their own or on a common one, and the overlay on them."""
    layers.mkdir()
    try:
        for name in filesystems:
            (layers / name).mkdir(exist_ok=True)
            kernel.mount("layer", layers / name, "tmpfs")
        lower, upper, work = layers / "lower/data", layers / "upper/data", layers / "upper/work"
        for directory in (lower / "tree", upper, work):
            directory.mkdir(parents=True)
        for number in range(FILES):
            (lower / "tree" / f"lower{number}").write_text(f"lower{number}\n")
        options = f"lowerdir={lower},upperdir={upper},workdir={work}"
        kernel.mount("overlay", source, "overlay", 0, options)
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
        pytest.skip("this kernel has no overlayfs")
    finally:  # the overlay keeps its layers
        for name in filesystems:
            kernel.umount2(layers / name, kernel.MNT_DETACH)


def populate_upper(source: Path) -> None:
    """Files of the upper layer beside those of the lower one."""
    for number in range(FILES):
        (source / "tree" / f"upper{number}").write_text(f"upper{number}\n")


def hold_layers(task: Task) -> Check:
    """All files of both layers; some pair of them has one inode number."""
    names = sorted(os.listdir(task.path()))
    fds = [os.open(task.path(name), os.O_RDONLY) for name in names]
    task.detach()

    def check() -> list[object]:
        inodes = {os.fstat(fd).st_ino for fd in fds}
        return [[os.pread(fd, 100, 0).decode() for fd in fds], len(inodes) < len(fds)]

    return check


def hold_some(task: Task) -> Check:
    """A lower and an upper file, and the directory that is of both layers."""
    lower = os.open(task.path("lower0"), os.O_RDONLY)
    upper = os.open(task.path("upper1"), os.O_RDWR | os.O_APPEND)
    top = os.open(task.path(), os.O_RDONLY)
    task.detach()
    return lambda: [
        os.pread(lower, 100, 0).decode(),
        os.pread(upper, 100, 0).decode(),
        len(os.listdir(top)),
    ]


@pytest.mark.covers("file", "directory", "o_append")
def test_layers(
    scenario: MakeScenario, placement: Placement, mount_overlay_of_one: Callable[[Path], None]
) -> None:
    """Files of both layers are restored where their numbers differ."""
    made = scenario(
        placement, [Bind(SUBDIRECTORY)], mount_source=mount_overlay_of_one, populate=populate_upper
    )
    held = made.start(hold_some).cycle()
    assert held.ask() == ["lower0\n", "upper1\n", 2 * FILES]


def hold_deleted(task: Task) -> Check:
    """Deleted files of both layers, and one that is not: before Linux 7.0 it has to be there."""
    os.open(task.path("upper1"), os.O_RDONLY)
    upper = os.open(task.path("upper0"), os.O_RDONLY)
    lower = os.open(task.path("lower0"), os.O_RDONLY)
    os.unlink(task.path("upper0"))
    os.unlink(task.path("lower0"))
    task.detach()
    return lambda: [os.pread(fd, 100, 0).decode() for fd in (upper, lower)]


@pytest.mark.detached
def test_deleted_in_lower_layer(
    scenario: MakeScenario, mount_overlay_of_one: Callable[[Path], None]
) -> None:
    """Its name is in that layer still, and its link count says so."""
    made = scenario(mount_source=mount_overlay_of_one, populate=populate_upper)
    held = made.start(hold_deleted)
    held.dump().failed("criu-detached: .*lower0.*a file of a lower layer keeps its name")
    assert held.ask() == ["upper0\n", "lower0\n"]


@pytest.mark.plain
def test_deleted_in_lower_layer_attached(
    scenario: MakeScenario, mount_overlay_of_one: Callable[[Path], None]
) -> None:
    made = scenario(attached=True, mount_source=mount_overlay_of_one, populate=populate_upper)
    made.start(hold_deleted).dump().failed("Can't create link remap")


def test_same_inode(scenario: MakeScenario, mount_overlay: Callable[[Path], None]) -> None:
    """Restored as they were, or refused while they live; never one in place of the other."""
    made = scenario(mount_source=mount_overlay, populate=populate_upper)
    made.start(hold_layers).survive()
