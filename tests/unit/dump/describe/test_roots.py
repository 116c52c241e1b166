"""The root of a detached mount, found through an attached one."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from criu_detached import kernel
from criu_detached.dump.describe import roots
from criu_detached.dump.open_file import OpenFile
from criu_detached.paths import Name

from ... import support


class Ground:
    """A filesystem with files, shown by an attached mount."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "a" / "b" / "dir").mkdir(parents=True)
        (path / "a" / "b" / "file").write_text("content")
        (path / "a" / "file").write_text("another file of this name")

    def find(self, name: str, path: bytes, source: str = ".") -> bytes | None:
        """The root of a mount on which a file has a path; source is the mount's root."""
        shown = self.path / source
        root = os.open(shown, os.O_PATH)
        fd = os.open(self.path / name, os.O_PATH)
        try:
            before = support.open_fds()
            found = roots.find_root(OpenFile.of(fd), Name(path, deleted=False), root)
            assert support.open_fds() == before
            return found
        finally:
            os.close(root)
            os.close(fd)


def no_handle(fd: int, flags: int = 0) -> tuple[int, bytes]:
    """name_to_handle_at(2) on overlayfs."""
    raise OSError(errno.EOPNOTSUPP, "name_to_handle_at")


@pytest.fixture(params=["handles", "search"])
def ground(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Ground:
    """With file handles, and without."""
    made = Ground(tmp_path)
    if request.param == "search":
        monkeypatch.setattr(kernel, "name_to_handle", no_handle)
        return made
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        os.close(kernel.open_by_handle(fd, kernel.name_to_handle(fd), os.O_PATH))
    except OSError as error:
        pytest.skip(f"no handles here: {error}")
    finally:
        os.close(fd)
    return made


@pytest.mark.parametrize(
    ("name", "path", "root"),
    [
        ("a/b/file", b"a/b/file", b"."),
        ("a/b/file", b"b/file", b"a"),
        ("a/b/file", b"file", b"a/b"),
        ("a/b/file", b".", b"a/b/file"),
        ("a/b/dir", b"dir", b"a/b"),
        ("a/b/dir", b".", b"a/b/dir"),
        ("a/file", b"file", b"a"),
    ],
)
def test_found(ground: Ground, name: str, path: bytes, root: bytes) -> None:
    assert ground.find(name, path) == root


def test_beneath_the_source(ground: Ground) -> None:
    assert ground.find("a/b/file", b"file", "a/b") == b"."
    assert ground.find("a/b/file", b"b/file", "a") == b"."


@pytest.mark.parametrize(
    ("name", "path", "source"),
    [
        ("a/b/file", b"other", "."),  # it has no such path
        ("a/file", b"file", "a/b"),  # the source does not show it, but one of its name
        ("a/b/dir", b"x/dir", "."),
    ],
)
def test_not_found(ground: Ground, name: str, path: bytes, source: str) -> None:
    assert ground.find(name, path, source) is None


@pytest.mark.parametrize(
    ("path", "root"), [(b"b/file", b"a"), (b"file", b"a/b"), (b".", b"a/b/file")]
)
@pytest.mark.parametrize("gone", ["file", "directory"])
def test_deleted(ground: Ground, path: bytes, root: bytes, gone: str) -> None:
    """The handle of a file leads to the path that it had; without one nothing does."""
    name = ground.path / "a" / "b" / "file"
    with support.opened(name) as fd, support.opened(ground.path, os.O_PATH) as top:
        name.unlink()
        if gone == "directory":
            (ground.path / "a" / "b" / "dir").rmdir()
            (ground.path / "a" / "b").rmdir()
        found = roots.find_root(OpenFile.of(fd), Name(path, deleted=True), top)
        assert found == (None if kernel.name_to_handle is no_handle else root)


def test_deleted_with_another_name(ground: Ground) -> None:
    """Its handle may lead to the other name, which says nothing of the mount's root."""
    name = ground.path / "a" / "b" / "file"
    (ground.path / "alias").hardlink_to(name)
    with support.opened(ground.path / "alias") as fd, support.opened(ground.path, os.O_PATH) as top:
        name.unlink()
        assert roots.find_root(OpenFile.of(fd), Name(b"file", deleted=True), top) is None


def test_search_inode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Ground(tmp_path)
    with (
        support.opened(tmp_path, os.O_PATH) as top,
        support.opened(tmp_path / "a" / "b") as fd,
        support.opened(tmp_path / "a" / "b" / "file") as opened,
    ):
        file = OpenFile.of(opened)
        assert roots.search_inode(top, file) == b"a/b/file"
        assert roots.search_inode(fd, file) == b"file"
        (tmp_path / "a" / "b" / "file").rename(tmp_path / "a" / "renamed")
        assert roots.search_inode(top, file) == b"a/renamed"
        assert roots.search_inode(fd, file) is None
        monkeypatch.setattr(roots, "SEARCH_LIMIT", 0)
        assert roots.search_inode(top, file) is None


def test_names_of_inode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of what a server hides need not be in its directory, and may be any."""
    Ground(tmp_path)
    for name in ("a/.fuse_hidden1", "a/b/.fuse_hidden2"):
        (tmp_path / name).hardlink_to(tmp_path / "a" / "b" / "file")
    with support.opened(tmp_path, os.O_PATH) as top, support.opened(tmp_path / "a/b/file") as fd:
        file = OpenFile.of(fd)
        names = {b"a/b/file", b"a/.fuse_hidden1", b"a/b/.fuse_hidden2"}
        assert set(roots.names_of_inode(top, file)) == names
        entries = roots._entries
        unknown = (1 << 32) - 1  # FUSE_UNKNOWN_INO, lib/fuse.c

        def told(root: int, directory: bytes) -> list[tuple[bytes, int]]:
            return [(name, unknown) for name, _ in entries(root, directory)]

        monkeypatch.setattr(roots, "_entries", told)
        assert set(roots.names_of_inode(top, file)) == names - {b"a/b/file"}


def test_search_wants_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By inode alone, either of two names would do; so neither does."""
    monkeypatch.setattr(kernel, "name_to_handle", no_handle)
    made = Ground(tmp_path)
    os.link(tmp_path / "a" / "b" / "file", tmp_path / "a" / "b" / "dir" / "file")
    assert made.find("a/b/file", b"file") is None


def test_search_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "name_to_handle", no_handle)
    monkeypatch.setattr(roots, "SEARCH_LIMIT", 1)
    made = Ground(tmp_path)
    assert made.find("a/file", b"file") == b"a"
    assert made.find("a/b/file", b"file") is None


def test_search_does_not_follow_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "name_to_handle", no_handle)
    made = Ground(tmp_path)
    (tmp_path / "a" / "loop").symlink_to("..")
    (tmp_path / "a" / "a").symlink_to("b")
    assert made.find("a/b/file", b"file") == b"a/b"
