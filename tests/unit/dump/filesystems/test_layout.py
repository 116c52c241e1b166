"""How mounts of one filesystem lie in each other, told by file handles."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from criu_detached.dump.filesystems.layout import Layout
from criu_detached.dump.open_file import OpenFile

from ... import support


@pytest.fixture
def filesystem(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of directories with a file in each."""
    path = tmp_path / "filesystem"
    path.mkdir()
    with support.mounted(path, "-t", "tmpfs", "layout"):
        for directory in ("a/b/c", "z"):
            (path / directory).mkdir(parents=True)
        for directory in ("", "a", "a/b", "a/b/c", "z"):
            (path / directory / "file").write_text(directory)
        yield path


def lay_out(filesystem: Path, held: Mapping[str, str | None]) -> dict[str, bytes | None]:
    """Where the mounts of some paths lie; of each a file is held, or its root."""
    with ExitStack() as stack:
        fds = {}
        for number, (mounted, name) in enumerate(held.items()):
            point = filesystem.parent / f"point{number}"
            if (filesystem / mounted).is_dir():
                point.mkdir(exist_ok=True)
            else:
                point.touch()
            with mount(filesystem / mounted, point):
                fds[mounted] = stack.enter_context(support.opened(point / (name or ""), os.O_PATH))
        return roots_of(Layout(fds.values()), fds)


def roots_of(layout: Layout, fds: Mapping[str, int]) -> dict[str, bytes | None]:
    """Where the mounts of some files lie; the layout is closed, and leaves nothing open."""
    before = support.open_fds()
    roots = {path: layout.root_of(OpenFile.of(fd)) for path, fd in fds.items()}
    assert support.open_fds() == before
    layout.close()
    assert len(support.open_fds()) < len(before)
    return roots


@contextmanager
def mount(source: Path, point: Path) -> Iterator[None]:
    """A bind mount for a while."""
    with support.mounted(point, "--bind", str(source)):
        yield


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        ({"": None}, {"": b"."}),
        ({"a": "file"}, {"a": b"."}),
        ({"": None, "a": None}, {"": b".", "a": b"a"}),
        ({"a": None, "": None}, {"": b".", "a": b"a"}),
        ({"a/b/c": None, "a": None}, {"a": b".", "a/b/c": b"b/c"}),
        ({"a": "file", "": "a/b/file"}, {"": b".", "a": b"a"}),
        ({"": "a/b/file", "a": "b/file"}, {"": b".", "a": b"a"}),
        ({"a/b": None, "z": None}, {"a/b": b"1", "z": b"2"}),
        ({"a/b": "file", "z": "file"}, {"a/b": b"1", "z": b"2"}),
        (
            {"a/b/c": None, "z": "file", "a/b": "file", "a": None},
            {"z": b"1", "a": b"2", "a/b": b"2/b", "a/b/c": b"2/b/c"},
        ),
        ({"a/b": None, "z": None, "": "file"}, {"": b".", "a/b": b"a/b", "z": b"z"}),
        ({"file": None}, {"file": b"1"}),  # the root of a filesystem is a directory
        ({"a/file": None, "a": None}, {"a": b".", "a/file": b"file"}),
        ({"file": None, "a": None}, {"file": b"1", "a": b"2"}),
    ],
    ids=str,
)
def test_mounts(
    filesystem: Path, held: dict[str, str | None], expected: dict[str, bytes | None]
) -> None:
    assert lay_out(filesystem, held) == expected


def test_same_root_twice(filesystem: Path) -> None:
    with ExitStack() as stack:
        fds = [stack.enter_context(support.detached(filesystem, filesystem / "a")) for _ in "12"]
        found = roots_of(Layout(fds), {str(fd): fd for fd in fds})
        assert list(found.values()) == [b".", b"."]


def test_late_mounts(filesystem: Path) -> None:
    """Files in flight are not seen before they are met: they are told if beneath the others."""
    with ExitStack() as stack:
        point = filesystem.parent / "point"
        point.mkdir()
        fds = {
            path: stack.enter_context(support.detached(point, filesystem / path))
            for path in ("a", "a/b", "z", "")
        }
        found = roots_of(Layout([fds["a"]]), fds)
    assert found == {"a": b".", "a/b": b"b", "z": None, "": None}


def test_file_with_two_names(filesystem: Path) -> None:
    """Its handle may lead to the other name, so it does not say where its mount is."""
    os.link(filesystem / "a/file", filesystem / "second")
    assert lay_out(filesystem, {"": None, "a": "file"})["a"] is None
    assert lay_out(filesystem, {"": None, "a": "b"})["a"] == b"a"


def test_fifo(filesystem: Path) -> None:
    """It cannot stand for its mount when a handle is opened, but its own handle can be."""
    os.mkfifo(filesystem / "a" / "fifo")
    assert lay_out(filesystem, {"": None, "a": "fifo"}) == {"": b".", "a": b"a"}
    assert lay_out(filesystem, {"z": None, "a": "fifo"})["a"] is None


def test_without_handles(tmp_path: Path) -> None:
    """One mount needs none."""
    path = tmp_path / "ramfs"
    path.mkdir()
    with support.mounted(path, "-t", "ramfs", "layout"):
        (path / "a").mkdir()
        assert lay_out(path, {"": None}) == {"": b"."}
        assert None in lay_out(path, {"": None, "a": None}).values()


@pytest.mark.parametrize(
    ("anchored", "expected"),
    [
        ({"a/b": b"a/b"}, {"a": b"a", "a/b/c": b"a/b/c", "z": None}),
        ({"a": b"elsewhere/a"}, {"a/b": b"elsewhere/a/b", "z": None}),
        ({"": b"."}, {"a": b"a", "a/b": b"a/b", "z": b"z"}),
        ({"a": b"a", "z": b"z"}, {"a/b": b"a/b", "z": b"z"}),
        # It cannot be, so nothing is made of it.
        ({"a/b/c": b"other", "z": b"z"}, {"a": None, "a/b": None, "z": b"z"}),
    ],
    ids=str,
)
def test_anchors(
    filesystem: Path, anchored: dict[str, bytes], expected: dict[str, bytes | None]
) -> None:
    """Where the roots of some mounts are told, those of the others follow."""
    with ExitStack() as stack:
        point = filesystem.parent / "point"
        point.mkdir()

        def held(path: str) -> int:
            return stack.enter_context(support.detached(point, filesystem / path))

        fds = {path: held(path) for path in expected}
        layout = Layout(fds.values(), [(held(path), root) for path, root in anchored.items()])
        assert layout.anchored
        assert roots_of(layout, fds) == expected
