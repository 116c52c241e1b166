"""An exported container that somebody had a hand in: its archive, and what was in its volume."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ..conftest import MakeContainer
from ..harness.container import Container
from ..harness.obstacles import hold_inner, instead, symlink_to
from ..harness.opened import Opened
from ..harness.placement import Placement

pytestmark = [
    pytest.mark.detached,
    pytest.mark.native_only("podman takes minutes there, and test_hostile_paths.py does the like"),
]

RECORDS = "checkpoint/criu-detached.img"
Edit = Callable[[tarfile.TarInfo, bytes], bytes]


def exported(container: MakeContainer, engine: str) -> Container:
    """A container in an archive."""
    held = container(engine, Placement.HOST_SOURCE).start(hold_inner)
    held.images = held.work / "archive.tar"
    held.checkpoint().succeeded()
    held.engine.remove(held.name)
    return held


def refused(held: Container, error: str, number: int) -> None:
    """The restore fails with one line of the plugin's; nothing runs, and it can be tried again."""
    run = held.restore(name=f"{held.name[:24]}-{number}").failed(f"criu-detached: .*({error})")
    assert len([line for line in run.errors() if "criu-detached: " in line]) == 1, run.report()
    held.engine.remove(held.name)
    held.assert_gone()


def test_swapped_in_the_volume(container: MakeContainer, secret: tuple[Path, Opened]) -> None:
    """The container may write to it, and so may whoever has it meanwhile."""
    held = exported(container, "podman-crun")
    tree = held.ground.source / "tree"
    obstacles = [
        ("dir", instead(tree / "dir", symlink_to(secret[0]))),
        ("tree", instead(tree, symlink_to("../../../.." + str(secret[0])))),
        ("is a FIFO", instead(tree / "dir" / "inner", os.mkfifo)),
    ]
    for number, (error, obstacle) in enumerate(obstacles):
        with obstacle:
            refused(held, error, number)
    held.restore(name=f"{held.name[:24]}-last").succeeded()
    assert held.ask() == ["inner\n", ["inner"], 1]
    assert secret[1].take() == set()


def write_edited(archive: Path, edited: Path, edit: Edit) -> None:
    """Copy an archive; the records are what the edit makes of them, and go when it makes none."""
    with tarfile.open(archive) as old, tarfile.open(edited, "w") as new:
        for member in old:
            content = old.extractfile(member) if member.isreg() else None
            data = content.read() if content else b""
            if member.name == RECORDS:
                data = edit(member, data)
                member.size = len(data)
                if member.isreg() and not data:
                    continue
            new.addfile(member, io.BytesIO(data))


def flipped(_: tarfile.TarInfo, data: bytes) -> bytes:
    """One bit is another one."""
    half = len(data) // 2
    return data[:half] + bytes([data[half] ^ 4]) + data[half + 1 :]


def linked(path: Path) -> Edit:
    """A symlink to a file of the machine that restores."""

    def edit(member: tarfile.TarInfo, _: bytes) -> bytes:
        member.type, member.linkname = tarfile.SYMTYPE, str(path)
        return b""

    return edit


def fifo(member: tarfile.TarInfo, _: bytes) -> bytes:
    """Who opens it waits for ever."""
    member.type = tarfile.FIFOTYPE
    return b""


def edits(secret: Path) -> Iterator[tuple[str, Edit]]:
    """What may be done to the records, and what the error says of it."""
    yield "is damaged", flipped
    yield "is missing", lambda *_: b""
    yield "can't open", linked(secret / "file")
    yield "damaged", fifo


def test_edited(container: MakeContainer, secret: tuple[Path, Opened]) -> None:
    """The records in the archive, damaged or replaced by what leads elsewhere."""
    held = exported(container, "podman-runc")
    archive = held.images
    held.images = held.work / "edited.tar"
    for number, (error, edit) in enumerate(edits(secret[0])):
        write_edited(archive, held.images, edit)
        refused(held, error, number)
    held.images = archive
    held.restore(name=f"{held.name[:24]}-last").succeeded()
    assert held.ask() == ["inner\n", ["inner"], 1]
    assert secret[1].take() == set()
