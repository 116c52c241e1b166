"""An fd and a mapping of one file on a detached mount are one file after a restore."""

from __future__ import annotations

import mmap
import os
import sys
from typing import Any

import pytest

from ..conftest import MakeScenario
from ..harness import look
from ..harness.agent import Check, Task
from ..harness.placement import Placement

UNTRACKED: dict[str, Any] = {"trackfd": False}  # Python 3.13: the mapping keeps no fd


def hold_mappings(task: Task) -> Check:
    """A file open, mapped shared and mapped private, and another that is mapped alone."""
    fd = os.open(task.path("file"), os.O_RDWR)
    shared = mmap.mmap(fd, 10)
    private = mmap.mmap(fd, 10, flags=mmap.MAP_PRIVATE)
    private[:2] = b"pp"
    other = os.open(task.path("other"), os.O_RDWR)
    alone = mmap.mmap(other, 6)
    os.close(other)

    def child() -> Check:
        def check() -> list[str]:
            shared[2:4] = b"cc"
            private[4:6] = b"dd"
            return [shared[:].decode(), private[:].decode(), os.pread(fd, 10, 0).decode()]

        return check

    ask_child = task.fork(child)
    task.detach()

    def check() -> dict[str, object]:
        shared[:2] = b"ss"
        of_child = ask_child()
        alone[:5] = b"alone"
        return {
            "child": of_child,
            "shared": shared[:].decode(),
            "private": private[:].decode(),
            "fd": os.pread(fd, 10, 0).decode(),
            "alone": alone[:].decode(),
        }

    return check


@pytest.mark.covers("shared_mapping", "private_mapping")
def test_mappings(scenario: MakeScenario, placement: Placement) -> None:
    held = scenario(placement).start(hold_mappings)
    held.cycle()
    answer = held.ask()
    # Python's mmap keeps a dup of the fd; the private page was copied when "pp" was written.
    assert answer == {
        "child": ["sscc456789", "pp23dd6789", "sscc456789"],
        "shared": "sscc456789",
        "private": "pp23456789",
        "fd": "sscc456789",
        "alone": "alone\n",
    }
    tree = held.ground.source / "tree"
    assert (tree / "file").read_text().startswith("sscc456789")
    assert (tree / "other").read_text() == "alone\n"


def hold_only_mapping(task: Task) -> Check:
    """A mapping whose fd is closed, which no other fd accompanies."""
    fd = os.open(task.path("file"), os.O_RDONLY)
    mapping = mmap.mmap(fd, 10, prot=mmap.PROT_READ, **UNTRACKED)
    os.close(fd)
    task.detach()
    return lambda: str(mapping[:], "ascii")


@pytest.mark.covers("shared_mapping")
@pytest.mark.skipif(sys.version_info < (3, 13), reason="mmap keeps an fd before Python 3.13")
def test_only_mapping(scenario: MakeScenario, placement: Placement) -> None:
    held = scenario(placement).start(hold_only_mapping).cycle()
    assert [fd for fd in look.open_files(held.pid) if fd > 2] == []
    assert held.ask() == "0123456789"
