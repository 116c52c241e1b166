"""Files of a filesystem that tells little of them: their numbers are large, their blocks none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .conftest import MakeScenario
from .fuse_files import FIRST_INODE, mount_files
from .harness.agent import Check, Task
from .test_served import WHOLE


def populate(source: Path) -> None:
    """Two files; there are no directories."""
    for name in ("file", "other"):
        (source / name).write_text(f"content of {name}")


def hold_files(task: Task, names: list[str], deleted: bool) -> Check:
    """Files, as they are or deleted."""
    fds = [os.open(task.path(name), os.O_RDWR) for name in names]
    if deleted:
        for name in names:
            os.unlink(task.path(name))
    task.detach()
    return lambda: [
        [os.pread(fd, 100, 0).decode(), os.fstat(fd).st_blocks, os.fstat(fd).st_ino] for fd in fds
    ]


@pytest.mark.parametrize("deleted", [False, True])
def test_files(scenario: MakeScenario, deleted: bool) -> None:
    """Whether a file has a content, its blocks do not tell."""
    held = scenario(binds=WHOLE, mount_source=mount_files, populate=populate)
    names = ["file", "other"]
    held.start(hold_files, names=names, deleted=deleted)
    before = held.ask()
    assert [[text, blocks] for text, blocks, _ in before] == [[f"content of {n}", 0] for n in names]
    assert all(number > FIRST_INODE for *_, number in before)
    held.cycle()
    after = held.ask()
    assert [each[:2] for each in after] == [each[:2] for each in before]
    assert deleted or after == before
