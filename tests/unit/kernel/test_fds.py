"""Fds that have an owner, and what /proc/self/fd does with an fd."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from criu_detached import kernel
from criu_detached.kernel.fds import Fd, Fds, link_of, magic_link, reopen

from .. import support


def is_open(fd: int) -> bool:
    """Whether a number is an open fd of this process."""
    return os.path.lexists(f"/proc/self/fd/{fd}")


def test_is_a_number(tmp_path: Path) -> None:
    with Fd.open(str(tmp_path), os.O_RDONLY) as fd:
        assert os.fstat(fd).st_ino == kernel.fstat(fd).ino == tmp_path.stat().st_ino
        assert os.listdir(fd) == []
        assert os.stat(".", dir_fd=fd).st_ino == tmp_path.stat().st_ino
        assert f"{fd}" == str(int(fd)) == (b"%d" % fd).decode()


def test_is_closed_at_the_end() -> None:
    with Fd(os.dup(0)) as fd:
        assert is_open(fd)
    assert not is_open(fd)


def test_is_closed_by_an_error() -> None:
    with pytest.raises(ValueError, match="x"), Fd(os.dup(0)) as fd:
        raise ValueError("x")
    assert not is_open(fd)


def test_is_closed_once() -> None:
    """The number may be another file's by then."""
    fd = Fd(os.dup(0))
    fd.close()
    other = os.dup(0)
    fd.close()
    assert is_open(other)
    os.close(other)


def test_released() -> None:
    with Fd(os.dup(0)) as fd:
        kept = fd.release()
    fd.close()
    assert is_open(kept)
    kept.close()
    assert not is_open(kept)


def test_open(tmp_path: Path, directory: int) -> None:
    (tmp_path / "file").write_text("content")
    with Fd.open("file", os.O_RDONLY, directory) as fd:
        assert os.read(fd, 9) == b"content"
        assert not os.get_inheritable(fd)
    with pytest.raises(FileNotFoundError):
        Fd.open("absent", os.O_RDONLY, directory)


def test_several() -> None:
    with Fds() as fds:
        single = Fd(os.dup(0))
        numbers = [fds.add(single), fds.add(os.dup(0))]
        single.close()
        assert all(map(is_open, numbers))
    assert not any(map(is_open, numbers))


def test_several_released() -> None:
    with Fds() as fds:
        numbers = [fds.add(os.dup(0)), fds.add(os.dup(0))]
        assert fds.release() == numbers
    assert all(map(is_open, numbers))
    for number in numbers:
        os.close(number)


def test_link(tmp_path: Path) -> None:
    with support.opened(tmp_path) as fd:
        assert link_of(fd) == os.fsencode(tmp_path)
        assert os.stat(magic_link(fd)).st_ino == tmp_path.stat().st_ino
    with pytest.raises(FileNotFoundError):
        link_of(fd)


def test_reopen(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("content")
    with support.opened(path, os.O_PATH) as fd:
        path.unlink()
        with reopen(fd, os.O_RDWR) as again:
            assert os.read(again, 9) == b"content"
            assert not os.get_inheritable(again)
        with pytest.raises(NotADirectoryError) as error:
            reopen(fd, os.O_DIRECTORY)
    assert error.value.errno == errno.ENOTDIR
