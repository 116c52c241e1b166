"""The layers of an overlay, from the options that it has."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criu_detached.errors import DetachedError
from criu_detached.filesystems.layers import DATA, LOWER, UPPER, WORK, Layers, split_layers

from .. import support

NAMES = st.text("ab\\:, ", min_size=1).map(lambda name: "/" + name)


def escape(path: str) -> str:
    r"""A path in the options of an overlay."""
    return "".join("\\" + char if char in "\\,:" else char for char in path)


@given(st.lists(NAMES, min_size=1), st.lists(NAMES, max_size=2))
def test_lowerdir(lower: list[str], data: list[str]) -> None:
    """Whatever the paths, they come back; layers of data alone stand behind two colons."""
    option = ":".join(map(escape, lower)) + "".join("::" + escape(path) for path in data)
    layers, others = split_layers([b"lowerdir=" + option.encode(), b"xino=on", b"userxattr"])
    assert layers == [
        *((LOWER, path.encode()) for path in lower),
        *((DATA, path.encode()) for path in data),
    ]
    assert others == [b"xino=on", b"userxattr"]


def test_one_option_a_layer() -> None:
    """These have no escapes."""
    assert split_layers([rb"lowerdir+=/a\:b", b"datadir+=/c"])[0] == [
        (LOWER, rb"/a\:b"),
        (DATA, b"/c"),
    ]


def test_upper_with_and_without_escapes(tmp_path: Path) -> None:
    """The kernel shows a path with them, unless the directory was given as an fd."""
    upper, work = tmp_path / "up,per", tmp_path / r"wo\rk"
    upper.mkdir()
    work.mkdir()
    options = [f"upperdir={escape(str(upper))}".encode(), f"workdir={work}".encode()]
    assert split_layers(options)[0] == [(UPPER, bytes(upper)), (WORK, bytes(work))]


def test_relative_path() -> None:
    """It started at a directory that nobody knows any more."""
    with pytest.raises(DetachedError, match=r"'?lower'? .*is no absolute path"):
        Layers([(LOWER, b"lower")])


def test_open_layers(tmp_path: Path) -> None:
    """They are closed together, also where one of them is missing."""
    there, missing = (LOWER, bytes(tmp_path)), (UPPER, b"/absent")
    before = support.open_fds()
    with Layers([there, there]) as layers:
        assert [layer.path for layer in layers.records()] == [bytes(tmp_path)] * 2
        assert layers.find(LOWER) == layers.fds[0][1]
        assert layers.find(UPPER) == -1
    with pytest.raises(DetachedError, match=r"/absent .* cannot be opened"):
        Layers([there, missing])
    assert support.open_fds() == before
