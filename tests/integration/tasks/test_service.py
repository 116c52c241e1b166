"""Services in private mount namespaces, as of systemd or snapd: others unmount what they use.

An unmount in the namespace of who manages them propagates into theirs.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from .. import disks, soleheld
from ..conftest import MakeScenario
from ..disks import Disk
from ..harness import kernel, look
from ..harness.agent import Check, Task
from ..harness.kernel import MNT_DETACH, MS_REC, MS_SHARED, MS_SLAVE, umount2
from ..harness.placement import CONTENT, INSIDE, Bind, Placement, Shape, populate_tree
from ..harness.programs import run
from ..harness.scenario import Scenario

pytestmark = pytest.mark.detached

ANSWER = [CONTENT, ["inner"], "private"]
SOLE = pytest.mark.covers("file", "cwd", column="sole-held")
WHERE = pytest.mark.parametrize(
    "sole",
    [
        pytest.param(False, marks=pytest.mark.covers("file", "cwd"), id="source"),
        pytest.param(True, marks=SOLE, id="sole-held"),
    ],
)


def serve_from(image: str) -> Check:
    """What the service does: a file, the working directory, and a file in its own /run."""
    run("mount", "--no-mtab", "--types", "tmpfs", "private", "/run")
    own = os.open("/run/own", os.O_RDWR | os.O_CREAT)
    os.write(own, b"private")
    file = os.open(f"{image}/tree/file", os.O_RDONLY)
    os.chdir(f"{image}/tree/dir")
    return lambda: [
        os.pread(file, 100, 0).decode(),
        os.listdir("."),
        os.pread(own, 100, 0).decode(),
    ]


def service(task: Task) -> Check:
    """The image is mounted on a mount that gets what the host does."""
    return serve_from(task.path("image"))


def managed_service(task: Task) -> Check:
    """The manager is dumped with its service."""
    run("mount", "--no-mtab", "--make-shared", task.base)

    def start() -> Check:
        if sys.version_info >= (3, 12):
            os.unshare(os.CLONE_NEWNS)
        run("mount", "--no-mtab", "--make-rslave", "/")
        return serve_from(task.path())

    ask = task.fork(start)
    task.detach()
    return ask


@dataclass(frozen=True)
class Propagated(Bind):
    """A slave of a mount of the host's, with what is mounted on that."""

    trees: list[int] = field(default_factory=list)

    def mount_on_host(self, place: Path, disk: Disk) -> None:
        """A shared mount, as /run/systemd/propagate, and an image on it."""
        kernel.mount("propagate", place, "tmpfs")
        kernel.mount("", place, "", MS_SHARED)
        (place / "image").mkdir()
        disk.mount(place / "image")
        flags = kernel.OPEN_TREE_CLONE | kernel.AT_RECURSIVE
        self.trees.append(kernel.open_tree(-100, str(place), flags))

    def attach(self, source: Path, point: Path, tree: int = -1) -> None:
        """Only now, for all that is in the namespace was made private."""
        point.mkdir()
        kernel.move_mount(self.trees[0], point)
        kernel.mount("", point, "", MS_REC | MS_SLAVE)


def answer(held: Scenario) -> object:
    """What the service says, whose mount is in no namespace: paths begin at its root."""
    files = look.open_files(look.tree(held.pid)[-1]).values()
    assert "/tree/file" in [file.link for file in files]
    return held.ask()


@WHERE
def test_unmounted_by_host(scenario: MakeScenario, tmp_path: Path, sole: bool) -> None:
    """The host unmounts an image that it has elsewhere as well, or nowhere."""
    bind = Propagated(Shape("whole", "", ""))
    with disks.image_disk(tmp_path, "squashfs", populate_tree) as disk:
        held = scenario(
            Placement.HOST_SOURCE,
            [bind],
            mount_source=lambda place: bind.mount_on_host(place, disk),
            populate=lambda _: None,
        ).start(service)
        os.close(bind.trees.pop())
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        if not sole:
            disk.mount(elsewhere)
        disk.detach()  # goes with the last mount
        umount2(held.ground.source / "image", MNT_DETACH)
        try:
            inside = f"{INSIDE}/point0"
            for _ in range(2):
                assert answer(held) == ANSWER
                held.dump("--external", f"mnt[{inside}]:service").succeeded()
                assert sole is not bool(disks.devices_over(disk.image))
                held.restore("--external", f"mnt[service]:{held.ground.source}").succeeded()
            assert answer(held) == ANSWER
        finally:
            held.kill()
            if not sole:
                umount2(elsewhere)


@WHERE
def test_unmounted_by_manager(scenario: MakeScenario, tmp_path: Path, sole: bool) -> None:
    """The manager is in a container, with its services."""
    with disks.image_disk(tmp_path, "squashfs", populate_tree) as disk:
        held = scenario(
            Placement.NAMESPACE,
            [Bind(Shape("whole", "", ""))],
            mount_source=disk.mount,
            populate=lambda _: None,
        ).start(managed_service)
        if sole:
            soleheld.sole(held)
            disk.detach()
        for _ in range(2):
            assert answer(held) == ANSWER
            held.cycle()
        assert answer(held) == ANSWER
        held.kill()
