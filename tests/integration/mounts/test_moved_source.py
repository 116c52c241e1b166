"""The source must be the superblock that it was, and may be made anew or copied on it.

Images restored from stay good.
"""

from __future__ import annotations

import os
import subprocess
from typing import Any

import pytest

from ..conftest import MakeScenario
from ..harness import kernel
from ..harness.agent import Check, Task
from ..harness.placement import CONTENT, SHAPES, SUBDIRECTORY, Bind, Placement, Shape, populate_tree
from ..harness.programs import hold_file
from ..settings import settings


@pytest.mark.detached
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.name)
def test_other_superblock(scenario: MakeScenario, shape: Shape) -> None:
    """A copy of all files on a new filesystem of the same type is not what the process had open.

    A restore that went on would leave other holders of the old filesystem with data of their own.
    """
    held = scenario(binds=[Bind(shape)]).start(hold_file)
    held.dump().succeeded()
    kernel.umount2(held.ground.source)
    kernel.mount("new", held.ground.source, "tmpfs")
    populate_tree(held.ground.source)
    held.restore().failed("criu-detached: .*another tmpfs filesystem")
    held.assert_gone()


def hold_log(task: Task, linked: bool) -> Check:
    """A file to append to and a directory; perhaps a deleted file that has another name."""
    log = os.open(task.path("log"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.chdir(task.path("dir"))
    other = os.open(task.path("other"), os.O_RDONLY)
    if linked:
        os.link(task.path("other"), "gone")
        other = os.open("gone", os.O_RDONLY)
        os.unlink("gone")
    task.detach()

    def check() -> list[Any]:
        os.write(log, b"one more\n")
        return [os.listdir("."), os.pread(other, 10, 0).decode()]

    return check


@pytest.mark.detached
@pytest.mark.parametrize(
    ("placement", "place", "linked"),
    [
        (Placement.HOST, "tree", True),
        (Placement.NAMESPACE, "tree", True),
        (Placement.NAMESPACE, "tree", False),
        (Placement.HOST_SOURCE, "copy", False),
    ],
    ids=["host-linked", "namespace-linked", "namespace", "supplied"],
)
def test_copied(scenario: MakeScenario, placement: Placement, place: str, linked: bool) -> None:
    """The source is a copy on the same filesystem, with other inodes: files are known by paths.

    So is a volume that podman has made again from an archive, and a copy that a setting names.
    """
    held = scenario(placement, [Bind(SUBDIRECTORY)]).start(hold_log, linked=linked)
    answer = held.ask()
    held.dump().succeeded()
    source = held.ground.source
    (source / "tree").rename(source / "old")
    subprocess.run(["cp", "--archive", source / "old", source / place], check=True)
    (source / "old" / "log").unlink()
    if place != "tree":
        settings(held, f"map {source}/tree {source}/{place}")
    run = held.restore().succeeded()
    assert any("is another directory than at the dump" in line for line in run.warnings())
    assert held.ask() == answer
    assert (source / place / "log").read_text() == "one more\n" * 2
    assert held.cycle().ask() == answer


def test_restored_twice(scenario: MakeScenario) -> None:
    """The images are still good after a restore: the process can be restored from them again."""
    held = scenario().start(hold_file)
    pid = held.pid
    held.dump().succeeded()
    for _ in range(2):
        held.restore().succeeded()
        assert held.ask() == CONTENT
        held.kill()
        held.pid = pid
    held.pid = 0
