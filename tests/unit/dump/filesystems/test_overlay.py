"""Options of overlays, and the handles of their files."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criu_detached.dump.filesystems.overlay import take_apart
from criu_detached.dump.filesystems.twins import real_handle
from criu_detached.errors import DetachedError
from criu_detached.overlay_layers import DATA, LOWER, UPPER, WORK, Layers

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
