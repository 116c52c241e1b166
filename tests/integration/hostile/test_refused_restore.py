"""Damaged records and sources that changed: restore fails with a clear line and leaves no task."""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ..conftest import MakeScenario
from ..harness import kernel
from ..harness.agent import Check, Task
from ..harness.placement import (
    CONTENT,
    SINGLE_FILE,
    SUBDIRECTORY,
    Bind,
    Placement,
    Shape,
    populate_tree,
)
from ..harness.programs import hold_file
from ..harness.scenario import Scenario

pytestmark = pytest.mark.detached

RECORDS = "criu-detached.img"
HEADER = 8  # two magic numbers


def entries(records: bytes) -> Iterator[tuple[int, int]]:
    """Where each entry's payload starts and ends."""
    at = HEADER
    while at < len(records):
        (size,) = struct.unpack_from("<I", records, at)
        yield at + 4, at + 4 + size
        at += 4 + size


def damaged(records: bytes) -> Iterator[tuple[str, bytes]]:
    """One of every kind of damage, named."""
    found = list(entries(records))
    first_start, first_end = found[0]
    last_start, last_end = found[-1]
    assert last_end == len(records), "the records don't end with an entry"
    for name, size in {
        "empty": 0,
        "half a magic": 6,
        "no entry": HEADER,
        "half a size": HEADER + 2,
        "no payload": first_start,
        "half a payload": (first_start + first_end) // 2,
        "first entry only": first_end,
        "last entry lost": last_start - 4,
        "last byte lost": len(records) - 1,
    }.items():
        yield f"cut: {name}", records[:size]
    flips = [0, 4, HEADER, first_start, *((start + end) // 2 for start, end in found[1:])]
    for at in [*flips, len(records) - 1]:
        flipped = bytearray(records)
        flipped[at] ^= 0x04
        yield f"flipped: byte {at}", bytes(flipped)
    yield "oversized entry", records[:HEADER] + struct.pack("<I", 1 << 31) + records[first_start:]
    yield "trailing bytes", records + b"\0\0\0\0more"
    yield "entry twice", records[:first_end] + records[first_start - 4 :]


def refused(held: Scenario, *patterns: str, case: str = "") -> None:
    """The restore fails, says so in the plugin's name, and no task is left."""
    run = held.restore()
    assert run.status, f"{case}: restored"
    run.failed("criu-detached: ")
    for pattern in patterns:
        run.failed(f"criu-detached: .*{pattern}")
    held.assert_gone()


def test_damaged_records(scenario: MakeScenario) -> None:
    held = scenario().start(hold_file)
    held.dump().succeeded()
    path = held.images / RECORDS
    records = path.read_bytes()
    for case, content in damaged(records):
        path.write_bytes(content)
        refused(held, case=case)
    path.unlink()
    refused(held, RECORDS, case="no record file")
    path.mkdir()
    refused(held, case="a directory")
    path.rmdir()
    path.write_bytes(records)
    held.restore().succeeded()
    assert held.ask() == CONTENT


def make_directory(path: Path) -> None:
    """Another file type."""
    path.mkdir()


def make_symlink(path: Path) -> None:
    """A way to another file."""
    path.symlink_to("/etc/passwd")


def make_regular(path: Path) -> None:
    """The same type and the same content, but not the same file."""
    path.write_text(CONTENT)


@pytest.mark.parametrize("replace", [make_directory, make_symlink, make_regular, os.mkfifo, None])
def test_file_changed(scenario: MakeScenario, replace: Callable[[Path], None] | None) -> None:
    """What lies at the recorded path is not what was open; afterwards it is again."""
    held = scenario(binds=[Bind(SUBDIRECTORY)]).start(hold_file)
    held.dump().succeeded()
    file = held.ground.source / "tree" / "file"
    kept = file.rename(file.with_name("kept"))
    if replace:
        replace(file)
    refused(held, "file")
    if file.is_dir():
        file.rmdir()
    else:
        file.unlink(missing_ok=True)
    kept.rename(file)
    held.restore().succeeded()
    assert held.ask() == CONTENT


def test_path_leads_out(scenario: MakeScenario) -> None:
    """A directory of the path became a symlink: the way out of the mount is not taken."""

    def hold_inner(task: Task) -> Check:
        fd = os.open(task.path("dir/inner"), os.O_RDONLY)
        task.detach()
        return lambda: os.pread(fd, 100, 0).decode()

    held = scenario().start(hold_inner)
    held.dump().succeeded()
    directory = held.ground.source / "tree" / "dir"
    moved = directory.rename(directory.with_name("moved"))
    directory.symlink_to("moved")
    refused(held, "inner")
    directory.unlink()
    moved.rename(directory)


@pytest.mark.parametrize("shape", [SUBDIRECTORY, SINGLE_FILE], ids=lambda s: s.name)
def test_source_gone(scenario: MakeScenario, shape: Shape) -> None:
    held = scenario(binds=[Bind(shape)]).start(hold_file)
    held.dump().succeeded()
    kernel.umount2(held.ground.source)
    refused(held, "source")


def test_other_filesystem(scenario: MakeScenario) -> None:
    """A filesystem of another type is mounted where the source was, with the same files in it."""
    held = scenario().start(hold_file)
    held.dump().succeeded()
    kernel.umount2(held.ground.source)
    kernel.mount("other", held.ground.source, "ramfs")
    populate_tree(held.ground.source)
    refused(held, "another filesystem.*tmpfs")


def test_source_gone_in_namespace(scenario: MakeScenario) -> None:
    """The volume that was the source has lost the directory that was bound."""
    held = scenario(Placement.NAMESPACE, [Bind(SUBDIRECTORY)]).start(hold_file)
    held.dump().succeeded()
    shutil.rmtree(held.ground.source / "tree")
    refused(held, "tree")


@pytest.mark.parametrize("placement", [Placement.HOST, Placement.NAMESPACE], ids=str)
def test_replaced(scenario: MakeScenario, placement: Placement) -> None:
    """Another file of the same size and mode has the name now."""
    held = scenario(placement).start(hold_file)
    held.dump().succeeded()
    file = held.ground.source / "tree" / "file"
    new = file.with_name("new")
    new.write_text("X" * file.stat().st_size)
    new.chmod(file.stat().st_mode & 0o7777)
    new.rename(file)
    refused(held, "is another file")
