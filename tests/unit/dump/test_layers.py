"""Which overlays have a layer on a filesystem."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from criu_detached import kernel, mountinfo
from criu_detached.dump import layers as layers_module
from criu_detached.dump.layers import overlay_on

from .. import support


@pytest.mark.parametrize(
    ("views", "wanted"),
    [
        (["{here} /m", "/gone /m"], None),
        (["/gone /m", "{here} /other"], None),
        (["/gone /m"], "the overlay at /m as a layer, or perhaps so"),
        (["{here}:/gone /m", "/gone:{here} /m"], "the overlay at /m as a layer, or perhaps so"),
        (["/gone /"], None),
        (["proc /m"], "the overlay at /m as a layer, or perhaps so"),
    ],
)
def test_overlays_in_several_namespaces(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, views: list[str], wanted: str | None
) -> None:
    """Each of the namespaces shows the one overlay, and one of them all of its layers, or none.

    A relative path leads to a layer nowhere, though something may be there.
    """
    monkeypatch.chdir("/")
    lines = []
    for view in views:
        layers, point = view.format(here=tmp_path).split()
        lines.append(f"40 30 0:99 / {point} rw - overlay overlay rw,lowerdir={layers}".encode())
    monkeypatch.setattr(
        mountinfo, "namespaces", lambda ids: enumerate([[index] for index in range(len(lines))])
    )
    monkeypatch.setattr(
        mountinfo,
        "mounts_of_namespace",
        lambda pids: [(os.getpid(), mountinfo.MountInfo(lines[pids[0]]))],
    )
    monkeypatch.setattr(layers_module, "_mounts_without_process", lambda inodes: iter(()))
    assert overlay_on(12345) == wanted
    device = os.stat(tmp_path).st_dev
    shown = any(str(tmp_path) in line.decode() for line in lines)
    assert bool(overlay_on(device)) is (shown or wanted is not None)


def test_symlinks_stay_in_the_root_of_the_process(tmp_path: Path) -> None:
    """A layer of a container may lead to what is outside only by its path from there."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "outside")
    before = support.open_fds()
    with pytest.raises(FileNotFoundError):
        layers_module._open_in(str(tmp_path), b"/link")
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to("/outside")
    fd = layers_module._open_in(str(tmp_path), b"/link")
    assert kernel.fstat(fd).ino == (tmp_path / "outside").stat().st_ino
    os.close(fd)
    assert support.open_fds() == before


@pytest.mark.parametrize(
    "option", [rb"lowerdir=/a\072b:/c", rb"lowerdir=/a\134:b:/c", rb"lowerdir=/a\072b::/c"]
)
def test_colon_in_a_path(option: bytes) -> None:
    """As newer and older kernels show it."""
    assert list(layers_module._layers([option])) == [b"/a:b", b"/c"]
    assert list(layers_module._layers([b"lowerdir+=/a:b", b"lowerdir+=/c"])) == [b"/a:b", b"/c"]
