"""Options of overlays, and the handles of their files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criu_detached import kernel
from criu_detached.dump.filesystems import overlay
from criu_detached.dump.filesystems.same_file import LayerTwins, real_handle
from criu_detached.errors import DetachedError
from criu_detached.filesystems.layers import DATA, LOWER, UPPER, WORK, Layers, take_apart

from ... import support

NAMES = st.text("ab\\:, ", min_size=1).map(lambda name: "/" + name)


def escape(path: str) -> str:
    r"""A path in the options of an overlay."""
    return "".join("\\" + char if char in "\\,:" else char for char in path)


@given(st.lists(NAMES, min_size=1), st.lists(NAMES, max_size=2))
def test_lowerdir(lower: list[str], data: list[str]) -> None:
    """Whatever the paths, they come back; layers of data alone stand behind two colons."""
    option = ":".join(map(escape, lower)) + "".join("::" + escape(path) for path in data)
    layers, others = take_apart([b"lowerdir=" + option.encode(), b"xino=on", b"userxattr"])
    assert layers == [
        *((LOWER, path.encode()) for path in lower),
        *((DATA, path.encode()) for path in data),
    ]
    assert others == [b"xino=on", b"userxattr"]


def test_one_option_a_layer() -> None:
    """These have no escapes."""
    assert take_apart([rb"lowerdir+=/a\:b", b"datadir+=/c"])[0] == [
        (LOWER, rb"/a\:b"),
        (DATA, b"/c"),
    ]


def test_upper_with_and_without_escapes(tmp_path: Path) -> None:
    """The kernel shows a path with them, unless the directory was given as an fd."""
    upper, work = tmp_path / "up,per", tmp_path / r"wo\rk"
    upper.mkdir()
    work.mkdir()
    options = [f"upperdir={escape(str(upper))}".encode(), f"workdir={work}".encode()]
    assert take_apart(options)[0] == [(UPPER, bytes(upper)), (WORK, bytes(work))]


def test_relative_path() -> None:
    """It started at a directory that nobody knows any more."""
    with pytest.raises(DetachedError, match=r"'?lower'? .*is no absolute path"):
        Layers([(LOWER, b"lower")])


def test_handle() -> None:
    """Whether it is of the upper layer (a flag) is left out: the trial mount has none."""
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

    def held_files(mnt_id: int) -> Iterator[int]:
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

    def check(fd: int, trial: int, path: bytes, twins: LayerTwins) -> None:
        looked_at.append(path[-2:])
        if path.endswith(b"/b"):
            raise DetachedError("b is another one")

    monkeypatch.setattr(overlay, "_check_one", check)
    with pytest.raises(DetachedError, match="b is another one"):
        overlay._check_held(held, 0, held, LayerTwins(Layers([]), b"."))
    assert looked_at[1:] == [b"/a", b"/b"]


def test_lasting_inodes(held: int) -> None:
    """The first file tells; the others are not looked at."""
    facts = kernel.fstat(held)
    assert overlay._has_lasting_inodes(held, facts.mnt_id, facts.dev)
    assert not overlay._has_lasting_inodes(held, facts.mnt_id, facts.dev + 1)
