"""What is known of an open file, and when it is asked for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from criu_detached import kernel
from criu_detached.dump.open_file import OpenFile, Owner, handle_of, has_handles

from .. import support


def test_what_is_known(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with support.opened(tmp_path / "file") as fd:
        file = OpenFile.of(fd)
        assert os.fsdecode(file.link) == str(tmp_path / "file")
        assert file.stat.ino == os.fstat(fd).st_ino
        assert file.statfs.fsid == os.fstatvfs(fd).f_fsid
        assert file.fs_type.magic in (0, file.statfs.magic)
        assert file.handle == handle_of(fd)
        assert has_handles(fd) == (file.handle is not None)
        assert not file.is_directory and not file.is_marked_deleted
        (tmp_path / "file").unlink()
        assert OpenFile.of(fd).is_marked_deleted
    with support.opened(tmp_path) as fd:
        assert OpenFile.of(fd).is_directory


def test_asked_once_and_on_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, fstatfs = [], kernel.fstatfs

    def noted(fd: int) -> kernel.StatFs:
        asked.append(fd)
        return fstatfs(fd)

    monkeypatch.setattr(kernel, "fstatfs", noted)
    with support.opened(tmp_path) as fd:
        file = OpenFile.of(fd)
        assert asked == []
        assert file.statfs is file.statfs
        assert asked == [fd]


def test_seen_from_another_root(tmp_path: Path) -> None:
    """It is the same file by another name."""
    owner = Owner(1, "fd/5")
    with support.opened(tmp_path) as fd:
        file = OpenFile(fd, kernel.fstat(fd), b"/tree/dir (deleted)", owner)
        assert [name.path for name in file.readings] == [b"tree/dir (deleted)", b"tree/dir"]
        other = file.seen_as(b"/dir")
        assert [name.path for name in other.readings] == [b"dir"]
        assert (other.fd, other.stat, other.owner) == (fd, file.stat, owner)
        assert file.link == b"/tree/dir (deleted)"


@pytest.mark.parametrize(
    ("link", "fd"), [("fd/12", 12), ("cwd", None), ("map_files/400000-401000", None)]
)
def test_owner(link: str, fd: int | None) -> None:
    owner = Owner(34, link)
    assert (owner.fd, owner.path) == (fd, f"/proc/34/{link}")
