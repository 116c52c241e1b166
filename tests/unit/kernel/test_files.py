"""What the kernel says of files, and how they are opened."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from criu_detached import kernel

from .. import support


@pytest.fixture
def tree(tmp_path: Path, directory: int) -> int:
    """A directory with links of all kinds in it."""
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "file").write_text("content")
    (tmp_path / "to-file").symlink_to("dir/file")
    (tmp_path / "to-dir").symlink_to("dir")
    (tmp_path / "to-etc").symlink_to("/etc")
    (tmp_path / "up").symlink_to("..")
    return directory


def test_open_beneath(tree: int, tmp_path: Path) -> None:
    fd, facts = kernel.open_beneath(tree, b"dir/file", os.O_RDONLY | os.O_CLOEXEC)
    with os.fdopen(fd) as file:
        assert file.read() == "content"
        status = os.fstat(fd)
    assert (facts.dev, facts.ino, facts.mode) == (status.st_dev, status.st_ino, status.st_mode)
    assert (facts.nlink, facts.uid, facts.gid) == (status.st_nlink, status.st_uid, status.st_gid)
    assert facts.mnt_id == support.mount_of(tmp_path).mnt_id


@pytest.mark.parametrize(
    ("path", "refusal"),
    [
        (b"to-file", errno.ELOOP),
        (b"to-dir/file", errno.ELOOP),
        (b"to-etc/passwd", errno.ELOOP),
        (b"up", errno.ELOOP),
        (b"..", errno.EXDEV),
        (b"dir/../../x", errno.EXDEV),
        (b"/etc/passwd", errno.EXDEV),
        (b"absent", errno.ENOENT),
        (b"dir/file/x", errno.ENOTDIR),
        (b"", errno.ENOENT),
    ],
)
def test_beneath_refuses(tree: int, path: bytes, refusal: int) -> None:
    before = support.open_fds()
    with pytest.raises(OSError, match="openat2") as error:
        kernel.open_beneath(tree, path, os.O_RDONLY | os.O_CLOEXEC)
    assert error.value.errno == refusal
    assert support.open_fds() == before


def test_magic_link_is_refused() -> None:
    own = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(OSError, match="openat2") as error:
            kernel.open_beneath(own, b"0", os.O_RDONLY | os.O_CLOEXEC)
        assert error.value.errno == errno.ELOOP
        with pytest.raises(OSError, match="openat2") as error:
            kernel.openat2(own, b"0", kernel.O_PATH, kernel.RESOLVE_NO_MAGICLINKS)
        assert error.value.errno == errno.ELOOP
    finally:
        os.close(own)


def test_other_mount_is_refused(tree: int, tmp_path: Path) -> None:
    with support.mounted(tmp_path / "dir", "-t", "tmpfs", "none"):
        for path in (b"dir", b"dir/."):
            with pytest.raises(OSError, match="openat2") as error:
                kernel.stat_beneath(tree, path)
            assert error.value.errno == errno.EXDEV
        fd = kernel.openat2(tree, b"dir", kernel.O_PATH, kernel.REACH_MOUNT)
        os.close(fd)


def test_last_symlink_is_itself(tree: int) -> None:
    facts = kernel.stat_beneath(tree, b"to-file")
    assert facts.ino == os.stat("to-file", dir_fd=tree, follow_symlinks=False).st_ino


def test_fds_are_closed_on_exec(tree: int) -> None:
    for fd in (
        kernel.open_tree(tree, b"", kernel.AT_EMPTY_PATH | kernel.OPEN_TREE_CLOEXEC),
        kernel.openat2(tree, b"dir", kernel.O_PATH, 0),
    ):
        assert not os.get_inheritable(fd)
        os.close(fd)


def test_fstatfs(tmp_path: Path, directory: int) -> None:
    assert kernel.fstatfs(directory).fsid == os.statvfs(tmp_path).f_fsid
    proc = os.open("/proc", kernel.O_PATH)
    assert kernel.fstatfs(proc).magic == 0x9FA0  # PROC_SUPER_MAGIC
    os.close(proc)


def test_handle_leads_back(tree: int) -> None:
    file, facts = kernel.open_beneath(tree, b"dir/file", kernel.O_PATH)
    try:
        try:
            handle = kernel.name_to_handle(file)
            again = kernel.open_by_handle(tree, handle, kernel.O_PATH)
        except (PermissionError, OSError) as error:
            pytest.skip(f"no handles here: {error}")
        assert kernel.fstat(again).ino == facts.ino
        os.close(again)
    finally:
        os.close(file)


def test_handle_wants_a_mount_fd_that_is_no_o_path(tree: int, tmp_path: Path) -> None:
    """open_by_handle_at(2) answers EBADF, whatever its manual lets hope."""
    mount = os.open(tmp_path, kernel.O_PATH)
    try:
        handle = kernel.name_to_handle(tree)
        with pytest.raises(OSError, match="open_by_handle_at") as error:
            kernel.open_by_handle(mount, handle, kernel.O_PATH)
    finally:
        os.close(mount)
    assert error.value.errno in (errno.EBADF, errno.EPERM)


def test_handle_that_is_too_long(tree: int) -> None:
    with pytest.raises(OSError, match="open_by_handle_at") as error:
        kernel.open_by_handle(tree, (1, bytes(129)), os.O_RDONLY)
    assert error.value.errno == errno.EINVAL


def test_errors_name_the_call() -> None:
    with pytest.raises(OSError, match="statx: Bad file descriptor"):
        kernel.fstat(-1)
    with pytest.raises(OSError, match="fstatfs: Bad file descriptor"):
        kernel.fstatfs(-1)


def test_device_of_a_superblock(tmp_path: Path) -> None:
    with support.opened(tmp_path, os.O_PATH) as fd:
        before = support.open_fds()
        assert kernel.superblock_dev(fd) == support.mount_of(tmp_path).dev
        assert support.open_fds() == before


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.touch(),
        lambda path: path.mkdir(),
        lambda path: path.symlink_to("/absent"),
        os.mkfifo,
    ],
    ids=["file", "directory", "symlink", "fifo"],
)
def test_same_inode(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """Of every type, and whatever its name."""
    for name in ("one", "other"):
        make(tmp_path / name)
    with (
        support.opened(tmp_path / "one", os.O_PATH | os.O_NOFOLLOW) as one,
        support.opened(tmp_path / "one", os.O_PATH | os.O_NOFOLLOW) as again,
        support.opened(tmp_path / "other", os.O_PATH | os.O_NOFOLLOW) as other,
    ):
        (tmp_path / "one").rename(tmp_path / "renamed")
        before = support.open_fds()
        assert kernel.is_same_inode(one, again)
        assert not kernel.is_same_inode(one, other)
        assert support.open_fds() == before


def test_same_inode_by_another_name(tmp_path: Path) -> None:
    (tmp_path / "one").touch()
    (tmp_path / "link").hardlink_to(tmp_path / "one")
    with support.opened(tmp_path / "one") as one, support.opened(tmp_path / "link") as link:
        for path in tmp_path.iterdir():
            path.unlink()
        assert kernel.is_same_inode(one, link)
    with pytest.raises(OSError, match="inotify"):
        kernel.is_same_inode(one, link)
