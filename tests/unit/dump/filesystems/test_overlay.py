"""Overlays that no attached mount shows: handles of their files, and the files that are held."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from criu_detached.dump.filesystems import overlay
from criu_detached.dump.filesystems.same_file import SameLayer, real_handle
from criu_detached.dump.observe.machine import Machine
from criu_detached.dump.open_file import OpenFile
from criu_detached.errors import DetachedError
from criu_detached.filesystems.layers import Layers

from ... import support


def test_handle() -> None:
    """Whether it is of the upper layer (a flag) is left out: the probe mount has none."""
    uuid, fid = bytes(range(16)), b"handle"
    upper, lower = (
        bytes((0, 0xFB, 21 + len(fid), flags, 1)) + uuid + fid + b"padding" for flags in (0, 4)
    )
    assert real_handle(upper) == real_handle(lower) == (1, uuid, fid)
    assert real_handle(upper[:20]) is None
    assert real_handle(b"\0" * 40) is None


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A directory of which processes hold files, which are to be opened one at a time."""
    for name in "abc":
        (tmp_path / name).touch()

    def held_files(machine: Machine, mnt_id: int) -> Iterator[int]:
        opened = len(support.open_fds())
        for name in "abc":
            assert len(support.open_fds()) == opened
            with support.opened(tmp_path / name, os.O_PATH) as fd:
                yield fd

    monkeypatch.setattr(overlay, "held_files", held_files)
    with support.opened(tmp_path, os.O_PATH) as directory:
        before = support.open_fds()
        yield directory
        assert support.open_fds() == before


def test_refused_held_file(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The dump may go on without this mount ("external all")."""
    looked_at = []

    def check(fd: int, probe: int, path: bytes, same_file: SameLayer) -> None:
        looked_at.append(path[-2:])
        if path.endswith(b"/b"):
            raise DetachedError("b is another one")

    monkeypatch.setattr(overlay, "_check_one", check)
    with pytest.raises(DetachedError, match="b is another one"):
        overlay._check_held(Machine(), OpenFile.of(held), held, SameLayer(Layers([]), b"."))
    assert looked_at[1:] == [b"/a", b"/b"]


def test_lasting_inodes(held: int) -> None:
    """The first file tells; the others are not looked at."""
    file = OpenFile.of(held)
    assert overlay._has_lasting_inodes(Machine(), file, file.stat.dev)
    assert not overlay._has_lasting_inodes(Machine(), file, file.stat.dev + 1)
