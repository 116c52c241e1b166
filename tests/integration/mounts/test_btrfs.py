"""On btrfs one inode number names a file of each subvolume: two are never taken for one."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .. import disks
from ..conftest import MakeScenario
from ..harness.agent import Check, Task
from ..harness.placement import (
    CONTENT,
    DIRECTORY,
    SUBDIRECTORY,
    Bind,
    Placement,
    Shape,
    populate_tree,
)


@pytest.fixture
def mount_btrfs(tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """Mounts a fresh btrfs; skipped where the machine can't."""
    with disks.disk(tmp_path, "btrfs") as disk:
        yield disk.mount


def populate_subvolumes(source: Path) -> None:
    """Two subvolumes, each with a first file, beside the common tree."""
    populate_tree(source)
    for name in ("one", "two"):
        volume = source / "tree" / name
        command = ["btrfs", "subvolume", "create", str(volume)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (volume / "file").write_text(f"{name}\n")
    one, two = ((source / "tree" / name / "file").stat() for name in ("one", "two"))
    assert one.st_ino == two.st_ino and one.st_dev != two.st_dev


def hold_file(task: Task) -> Check:
    """A file and a directory of the top subvolume."""
    fd = os.open(task.path("file"), os.O_RDWR)
    directory = os.open(task.path("dir"), os.O_RDONLY)
    task.detach()
    return lambda: [os.pread(fd, 100, 0).decode(), os.listdir(directory)]


def hold_one(task: Task) -> Check:
    """A file of a subvolume below the mount's root."""
    fd = os.open(task.path("two/file"), os.O_RDWR)
    task.detach()
    return lambda: [os.pread(fd, 100, 0).decode()]


def hold_both(task: Task) -> Check:
    """Two files with one inode number on one mount."""
    fds = [os.open(task.path(f"{name}/file"), os.O_RDWR) for name in ("one", "two")]
    task.detach()
    return lambda: [os.pread(fd, 100, 0).decode() for fd in fds]


@pytest.mark.covers("file", "directory")
def test_top_subvolume(
    scenario: MakeScenario, placement: Placement, mount_btrfs: Callable[[Path], None]
) -> None:
    held = scenario(placement, mount_source=mount_btrfs).start(hold_file).cycle()
    assert held.ask() == [CONTENT, ["inner"]]


@pytest.mark.parametrize("shape", [DIRECTORY, SUBDIRECTORY], ids=lambda s: s.name)
@pytest.mark.parametrize("program", [hold_one, hold_both])
def test_same_inode(
    scenario: MakeScenario,
    mount_btrfs: Callable[[Path], None],
    program: Callable[[Task], Check],
    shape: Shape,
) -> None:
    """Restored as they were, or refused while they live; never one in place of the other."""
    made = scenario(
        binds=[Bind(shape)],
        mount_source=mount_btrfs,
        populate=populate_subvolumes,
    )
    made.start(program).survive()
