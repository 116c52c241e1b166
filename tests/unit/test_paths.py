"""Paths within a mount."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from criu_detached import kernel, paths


@pytest.mark.parametrize(
    ("link", "path"), [(b"/", b"."), (b"/a", b"a"), (b"/a/b", b"a/b"), (b"/a b", b"a b")]
)
def test_from_link(link: bytes, path: bytes) -> None:
    assert paths.from_link(link) == path


@pytest.mark.parametrize(
    ("one", "other", "joined"),
    [
        (b".", b".", b"."),
        (b".", b"a", b"a"),
        (b"a", b".", b"a"),
        (b"a", b"b/c", b"a/b/c"),
        (b"/", b".", b"/"),
        (b"/mnt", b"a", b"/mnt/a"),
    ],
)
def test_join(one: bytes, other: bytes, joined: bytes) -> None:
    assert paths.join(one, other) == joined


@pytest.mark.parametrize(
    ("path", "root", "inside"),
    [
        (b"/", b"/", b"."),
        (b"/a", b"/", b"a"),
        (b"/a/b", b"/", b"a/b"),
        (b"/a", b"/a", b"."),
        (b"/a/b", b"/a", b"b"),
        (b"/ab", b"/a", None),
        (b"/a", b"/a/b", None),
        (b"/", b"/a", None),
    ],
)
def test_below(path: bytes, root: bytes, inside: bytes | None) -> None:
    assert paths.below(path, root) == inside


def test_stat_at(tmp_path: Path, directory: int) -> None:
    (tmp_path / "file").write_text("x")
    assert paths.stat_at(directory, b".").ino == tmp_path.stat().st_ino
    assert paths.stat_at(directory, b"file").ino == (tmp_path / "file").stat().st_ino
    with pytest.raises(FileNotFoundError):
        paths.stat_at(directory, b"absent")


def test_root_that_is_a_file(tmp_path: Path) -> None:
    """A mount of one file has that file for its root."""
    path = tmp_path / "file"
    path.write_text("x")
    fd = os.open(path, kernel.O_PATH)
    try:
        assert paths.stat_at(fd, paths.ROOT).ino == path.stat().st_ino
        again = paths.open_at(fd, paths.ROOT)
        assert os.fstat(again).st_ino == path.stat().st_ino
        os.close(again)
    finally:
        os.close(fd)


def test_open_at_has_no_effect_on_the_file(tmp_path: Path, directory: int) -> None:
    """A FIFO without a writer would block, and a symlink is itself."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("fifo")
    for name, kind in ((b"fifo", stat.S_IFIFO), (b"link", stat.S_IFLNK), (b".", stat.S_IFDIR)):
        fd = paths.open_at(directory, name)
        assert stat.S_IFMT(os.fstat(fd).st_mode) == kind
        assert not os.get_inheritable(fd)
        os.close(fd)


@pytest.mark.parametrize("path", [b"..", b"a/../..", b"/etc", b"/"])
def test_open_at_stays_beneath(tmp_path: Path, directory: int, path: bytes) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError, match="openat2") as error:
        paths.open_at(directory, path)
    assert error.value.errno == errno.EXDEV


@pytest.mark.parametrize(
    ("name", "start", "directory"),
    [
        (b"/mnt/a/socket", b"tree/a", b"tree/a"),
        (b"socket", b".", b"."),
        (b"./socket", b"tree", b"tree"),
        (b"./a/b/socket", b".", b"a/b"),
        (b"a/socket", b"tree", b"tree/a"),
    ],
)
def test_directory_of_socket(name: bytes, start: bytes, directory: bytes) -> None:
    assert paths.directory_of_socket(name, start) == directory


def test_open_mountpoint(tmp_path: Path, directory: int) -> None:
    (tmp_path / "mnt").mkdir()
    for name in (b"/mnt", b"/"):
        fd = paths.open_mountpoint(directory, name)
        assert os.path.samestat(os.fstat(fd), os.stat(os.fsencode(tmp_path) + name))
        os.close(fd)


def test_open_mountpoint_follows_no_symlink(tmp_path: Path, directory: int) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "mnt").mkdir()
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(OSError, match="openat2") as error:
        paths.open_mountpoint(directory, b"/link/mnt")
    assert error.value.errno == errno.ELOOP


def test_open_mountpoint_stays_in_its_namespace(tmp_path: Path, directory: int) -> None:
    """ ".." at the root is the root, as in the namespace itself."""
    fd = paths.open_mountpoint(directory, b"/../..")
    assert os.fstat(fd).st_ino == tmp_path.stat().st_ino
    os.close(fd)
