"""The source must be the superblock that it was; images restored from stay good."""

from __future__ import annotations

import pytest

from .conftest import MakeScenario
from .harness import kernel
from .harness.placement import CONTENT, SHAPES, Bind, Shape, populate_tree
from .harness.programs import hold_file


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
