"""Which overlays have a layer on a filesystem."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest

from criu_detached.dump.observe import overlays as layers_module
from criu_detached.dump.observe.machine import read_mounts
from criu_detached.dump.observe.overlays import Verdicts, list_overlays, look_at
from criu_detached.kernel import mountinfo
from criu_detached.kernel.children import Answer, ask_each
from criu_detached.kernel.fds import Fd
from criu_detached.kernel.walk import MountTable

from ... import support


def overlay_on(dev: int, attached: MountTable | None = None) -> str | None:
    """Who says that it has a layer on a filesystem."""
    listed = list_overlays(read_mounts() if attached is None else attached)
    verdicts = Verdicts()
    answers = ask_each([partial(look_at, overlay) for overlay in listed])
    verdicts.note(list(zip(listed, answers, strict=True)))
    return verdicts.holder(dev)


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

    A relative path leads nowhere, though something may be there.
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
    table = MountTable.of([(40, 99, True)])  # which tells no namespaces
    # Stand-ins: the root is that of the one layer that is there.
    monkeypatch.setattr(layers_module, "open_mount", lambda *_: Fd(os.open(tmp_path, os.O_PATH)))
    here = os.fsencode(tmp_path), os.stat(tmp_path)
    monkeypatch.setattr(layers_module, "_uppermost", lambda _, layer, __: dict([here]).get(layer))
    monkeypatch.setattr(layers_module, "_is_of_one_filesystem", lambda *_: False)
    before = support.open_fds()
    assert overlay_on(12345, table) == wanted
    device = os.stat(tmp_path).st_dev
    shown = any(str(tmp_path) in line.decode() for line in lines)
    assert bool(overlay_on(device, table)) is (shown or wanted is not None)
    assert support.open_fds() == before


def overlay(ground: Path, options: str) -> AbstractContextManager[None]:
    """An overlay at "base/merged"; relative paths begin where this process is."""
    return support.mounted(ground / "base/merged", "-t", "overlay", "-o", options, "none")


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Path]:
    """Directories for layers, on two filesystems."""
    if os.geteuid():
        pytest.skip("needs root")
    with support.mounted(tmp_path, "-t", "tmpfs", "none"):
        for name in ("base/merged", "base/up", "base/work", "base/low", "base/lower", "gone"):
            (tmp_path / name).mkdir(parents=True)
        (tmp_path / "base/lower/file").touch()
        yield tmp_path


UPPER = "upperdir={0}up,workdir={0}work"


@pytest.mark.parametrize("prefix", ["{base}/", ""], ids=["absolute", "relative"])
@pytest.mark.parametrize("kind", ["layer", "none"])
def test_layer_that_is_covered_no_more(
    ground: Path, monkeypatch: pytest.MonkeyPatch, prefix: str, kind: str
) -> None:
    """What was mounted on a layer's path is gone: the directory below is at that path now."""
    base = ground / "base"
    monkeypatch.chdir(base)
    prefix = prefix.format(base=base)
    options = f"lowerdir={prefix}low:{prefix}lower,{UPPER.format(prefix)}"
    (base / "low" / "below").touch()
    with ExitStack() as stack:
        with support.mounted(base / "low", "-t", "tmpfs", "none"):
            (base / "low" / "file").touch()
            held = stack.enter_context(support.opened(base / "low"))
            if kind == "layer":
                stack.enter_context(overlay(ground, options))
        if kind == "none":
            stack.enter_context(overlay(ground, options))
        found = overlay_on(os.fstat(held).st_dev)
        wanted = f"the overlay at {base}/merged as a layer, or perhaps so"
        assert found == (wanted if kind == "layer" else None)


@pytest.mark.parametrize("start", ["base", "."])
def test_relative_paths(ground: Path, monkeypatch: pytest.MonkeyPatch, start: str) -> None:
    """They may begin in a directory above the mountpoint, as docker's do."""
    monkeypatch.chdir(ground / start)
    inside = "" if start == "base" else "base/"
    (ground / "base/low/of-low").touch()
    with overlay(ground, f"lowerdir={inside}lower:{inside}low,{UPPER.format(inside)}"):
        before = support.open_fds()
        found = overlay_on((ground / "base").stat().st_dev)
        assert found == f"the overlay at {ground}/base/merged as a layer"
        assert overlay_on(12345) is None
        assert support.open_fds() == before


def test_root_that_is_covered(ground: Path) -> None:
    """Then it has to do that something is at the path of each layer."""
    base = ground / "base"
    options = f"lowerdir={base}/low,{UPPER.format(f'{base}/')}"
    with overlay(ground, options), support.mounted(base / "merged", "-t", "tmpfs", "none"):
        assert overlay_on(12345) is None
        (base / "low").rename(base / "away")
        found = overlay_on(12345)
    assert found == f"the overlay at {base}/merged as a layer, or perhaps so"


def test_mounted_over_a_layer(ground: Path) -> None:
    """That is on an attached filesystem, so there is nothing that has to be in it."""
    with support.mounted(ground / "gone", "-t", "tmpfs", "none"):
        for name in ("up", "work"):
            (ground / "gone" / name).mkdir()
        merged = ground / "base/merged"
        with overlay(ground, f"lowerdir={merged},{UPPER.format(f'{ground}/gone/')}"):
            assert overlay_on(12345) is None
            assert overlay_on((ground / "gone").stat().st_dev) is not None


def test_relative_paths_from_elsewhere(ground: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Directories of the same names above the mountpoint are others."""
    for name in ("up", "work", "low"):
        (ground / "gone" / name).mkdir()
    monkeypatch.chdir(ground / "gone")
    with overlay(ground, f"lowerdir=low,{UPPER.format('')}"):
        found = overlay_on(12345)
    assert found == f"the overlay at {ground}/base/merged as a layer, or perhaps so"


@contextmanager
def covered_in_a_namespace(path: Path) -> Iterator[None]:
    """A process to which something else is there."""
    script = 'mount -t tmpfs none "$1" && echo covered && cat'
    command = ["unshare", "--mount", "sh", "-c", script, "sh", str(path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"covered\n"
        yield


@pytest.mark.parametrize("view", ["bind of a directory", "bind over the layer", "namespace"])
def test_other_views(ground: Path, view: str) -> None:
    """What shows that a layer is gone counts, whatever there is to be seen elsewhere."""
    base = ground / "base"
    (base / "merged" / "dir").mkdir()
    with ExitStack() as stack:
        with support.mounted(base / "low", "-t", "tmpfs", "none"):
            (base / "low" / "dir").mkdir()
            held = stack.enter_context(support.opened(base / "low"))
            stack.enter_context(overlay(ground, f"lowerdir={base}/low:{base}/lower"))
        if view == "namespace":
            stack.enter_context(covered_in_a_namespace(base / "merged"))
        else:
            place, what = ("gone", "merged/dir") if "directory" in view else ("base/low", "merged")
            stack.enter_context(support.mounted(ground / place, "--bind", str(base / what)))
        found = overlay_on(os.fstat(held).st_dev)
    assert found == f"the overlay at {base}/merged as a layer, or perhaps so"


@pytest.mark.parametrize("names", ["same", "none"])
def test_nothing_of_its_own(ground: Path, names: str) -> None:
    """All is on one filesystem, so nothing of the lower layers has to be shown."""
    base = ground / "base"
    if names == "same":
        for name in ("low", "lower"):
            (base / name / "usr").mkdir()
    (base / "lower" / "file").unlink()
    with overlay(ground, f"lowerdir={base}/low:{base}/lower"):
        assert overlay_on(12345) is None
        assert overlay_on(ground.stat().st_dev) == f"the overlay at {base}/merged as a layer"


@pytest.mark.parametrize("layer", ["there", "gone"])
def test_overlay_that_does_not_answer(ground: Path, layer: str) -> None:
    """Its layers are asked one by one: what does not answer either is not in memory."""
    base = ground / "base"
    with overlay(ground, f"lowerdir={base}/low:{base}/lower"):
        [listed] = [
            one for one in list_overlays(read_mounts()) if one.where().startswith(bytes(base))
        ]
        if layer == "gone":
            (base / "low").rename(base / "moved")
        verdicts = Verdicts()
        verdicts.note([(listed, Answer(in_time=False))])
        assert (verdicts.holder(12345) is None) is (layer == "there")
