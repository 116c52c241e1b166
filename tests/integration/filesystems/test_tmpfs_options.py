"""A filesystem in memory has its options again, as far as the kernel tells them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ..conftest import MakeScenario
from ..harness import kernel, look
from ..harness.agent import Check, Task
from ..harness.placement import Bind, populate_tree
from ..harness.scenario import Scenario
from ..soleheld import sole

pytestmark = pytest.mark.detached

OPTIONS = [
    "",
    "size=8m",
    "size=0,nr_inodes=0",
    "nr_inodes=50",
    "mode=0711,uid=12,gid=34",
    "huge=always",
    "huge=within_size,size=32m",
    "inode32",
    "inode64",
    "noswap",
]


def hold_root(task: Task) -> Check:
    """The root of the filesystem, which is that of its mount."""
    root = os.open(task.path().removesuffix("/tree"), os.O_RDONLY)
    task.detach()

    def check() -> dict[str, Any]:
        facts, fs = os.fstat(root), os.fstatvfs(root)
        return {
            "root": [oct(facts.st_mode), facts.st_uid, facts.st_gid, os.listdir(root)],
            "limits": [fs.f_blocks, fs.f_files],
            "used": [fs.f_blocks - fs.f_bfree, fs.f_files - fs.f_ffree],
            "read-only": bool(fs.f_flag & os.ST_RDONLY),
        }

    return check


def options_of(held: Scenario) -> tuple[str, ...] | None:
    """What the kernel tells of the superblock, from Linux 7.0 on."""
    found = look.mount_of(held.pid, 3)
    return found.options if found else None


@pytest.mark.parametrize("options", OPTIONS)
def test_options(scenario: MakeScenario, options: str) -> None:
    def mount_source(source: Path) -> None:
        try:
            kernel.mount("source", source, "tmpfs", 0, options)
        except OSError as error:
            pytest.skip(f"this kernel has no such option: {error}")

    held = sole(scenario(mount_source=mount_source).start(hold_root))
    before = seen(held)
    for _ in range(2):
        held.cycle()
        assert seen(held) == before


def seen(held: Scenario) -> tuple[dict[str, Any], tuple[str, ...] | None]:
    """Before Linux 7.0 the options are not told, and what files take depends on the pages' size."""
    answer, options = held.ask(), options_of(held)
    if options is None:
        answer.pop("used")
    return answer, options


def hold_sizes(task: Task) -> Check:
    """A small file and a large one: how large their blocks are depends on huge pages."""
    small = os.open(task.path("file"), os.O_RDWR)
    large = os.open(task.path("other"), os.O_RDWR)
    os.truncate(large, 4 << 20)
    task.detach()
    return lambda: [os.fstat(fd).st_blksize for fd in (small, large)]


@pytest.mark.parametrize("huge", ["always", "within_size", "never"])
def test_huge_pages(scenario: MakeScenario, huge: str) -> None:
    """Before Linux 7.0 they are told from the files that are held."""

    def mount_source(source: Path) -> None:
        try:
            kernel.mount("source", source, "tmpfs", 0, f"huge={huge}")
        except OSError as error:
            pytest.skip(f"this kernel has no huge pages in tmpfs: {error}")

    held = sole(scenario(mount_source=mount_source).start(hold_sizes))
    answer = held.ask()
    run = held.dump()
    assert ("does not tell the options" in run.log) is not kernel.has_statmount_by_fd()
    held.restore().succeeded()
    assert held.ask() == answer


def test_read_only(scenario: MakeScenario) -> None:
    """The filesystem itself, not its mount; it is filled all the same."""

    def populate(source: Path) -> None:
        populate_tree(source)
        kernel.mount("", source, "", kernel.MS_REMOUNT | kernel.MS_RDONLY)

    held = sole(scenario(binds=[Bind()], populate=populate).start(hold_root))
    before = held.ask()
    assert before["read-only"]
    held.cycle()
    assert held.ask() == before
    with pytest.raises(OSError, match="Read-only"):
        os.mkdir(f"/proc/{held.pid}/fd/3/new")
