"""Filesystems that are mounted nowhere any more, but lie on a device: they are mounted again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from . import disks
from .conftest import MakeScenario
from .harness.agent import Check, Task
from .harness.kernel import MNT_DETACH, umount2

pytestmark = pytest.mark.detached


def populate(source: Path) -> None:
    """What every filesystem can hold."""
    (source / "tree" / "dir").mkdir(parents=True)
    (source / "tree" / "file").write_text("0123456789")


def hold_files(task: Task) -> Check:
    """A file, a directory that is the working directory, and a deleted file."""
    fd = os.open(task.path("file"), os.O_RDWR)
    os.chdir(task.path("dir"))
    deleted = os.open("deleted", os.O_RDWR | os.O_CREAT)
    os.write(deleted, b"deleted")
    os.unlink("deleted")
    task.detach()

    def check() -> list[Any]:
        with open("new", "a") as file:
            file.write("new\n")
        with open("../file") as file:
            return [file.read(), os.pread(fd, 4, 0).decode(), os.pread(deleted, 10, 0).decode()]

    return check


@pytest.mark.parametrize("fs_type", ["ext4"])
def test_disk(scenario: MakeScenario, tmp_path: Path, fs_type: str) -> None:
    with disks.disk(tmp_path, fs_type) as disk:
        held = scenario(mount_source=disk.mount, populate=populate).start(hold_files)
        umount2(held.ground.source, MNT_DETACH)
        expected = held.ask()
        held.cycle()
        assert held.ask() == expected
        held.cycle()
        assert held.ask() == expected
        held.kill()
        disk.mount(held.ground.source)
        assert (held.ground.source / "tree" / "dir" / "new").read_text() == "new\n" * 3
        umount2(held.ground.source)
