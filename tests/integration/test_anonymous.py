"""Mounts that were cloned and never attached: their tree fd, and the files of the tree."""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
import sys

import pytest

from .conftest import MakeScenario
from .harness import kernel, look
from .harness.agent import Check, Task, calls
from .harness.placement import CONTENT, SINGLE_FILE, Bind, Placement
from .harness.scenario import Scenario

pytestmark = pytest.mark.detached

def cloned(path: str, recursive: bool = False) -> int:
    """The fd of a new tree."""
    (tree,) = calls(f"answer(clone({path!r}, {0x8000 if recursive else 0}))")
    return tree


def attached(task: Task, tree: int) -> list[str]:
    """Where the runner made a directory for it, attach the tree, and say what is seen there."""
    target = os.path.join(task.base, "attach")
    if not os.path.isdir(target):
        return []
    own = f"/proc/{os.getpid()}/fd/{tree}"
    calls(f"move_mount(get_fd({os.getpid()}, {tree}), -100, {target!r}); answer(0)")
    found = sorted(os.listdir(target))
    os.rmdir(target) if not found else None
    assert os.readlink(own) == target
    umount = ["umount", "--lazy", "--no-mtab", target]
    os.waitpid(os.posix_spawnp(umount[0], umount, os.environ), 0)
    return found


def hold_tree(task: Task) -> Check:
    """The fd of a tree, another fd of its root, and a file; once asked to, it attaches the tree."""
    tree = cloned(task.path())
    task.detach()
    again = os.open(".", os.O_PATH, dir_fd=tree)
    file = os.open("file", os.O_RDONLY, dir_fd=tree)

    def check() -> list[object]:
        here = [os.stat(fd).st_ino for fd in (tree, again)]
        return [os.pread(file, 100, 0).decode(), here[0] == here[1], attached(task, tree)]

    return check


TREE = sorted(["file", "other", "dir", "link", "fifo", "null", "zero"])


@pytest.mark.covers("tree_fd", "file", "o_path", column="anonymous")
def test_tree_fd(scenario: MakeScenario, every_placement: Placement) -> None:
    """It is the fd of a tree again, however often: what it leads to can be attached."""
    held = scenario(every_placement).start(hold_tree)
    held.cycle().cycle()
    assert held.ask() == [CONTENT, True, []]
    (held.ground.base / "attach").mkdir()
    assert held.ask() == [CONTENT, True, TREE]
