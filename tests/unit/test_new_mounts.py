"""Filesystems that this process mounts where nobody else sees them (criu_detached/kernel.py)."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from criu_detached import kernel
from criu_detached.errors import DetachedError
from criu_detached.recordfile import NAME, Records, RecordWriter, read_records
from criu_detached.records import (
    FORMAT,
    RECREATED,
    BindSource,
    BoundSocket,
    Header,
    Inode,
    Mount,
    Node,
    Superblock,
)
from criu_detached.restore.filesystems.make import make_filesystems, settle_filesystems
from criu_detached.restore.realise import Means

from . import support
from .support import memory_record


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    """No fd, no mount, and the same namespace, root and directory as before."""
    if os.geteuid():
        pytest.skip("needs root")
    before = state()
    yield
    assert state() == before


def state() -> list[object]:
    """What must not change."""
    places = [os.readlink(f"/proc/self/{name}") for name in ("ns/mnt", "root", "cwd")]
    fds = {link for link in support.open_fds().values() if not link.endswith(NAME)}
    return [fds, Path("/proc/self/mountinfo").read_text(), places]


def test_new_mount() -> None:
    tree = kernel.new_mount(b"tmpfs", b"source", [b"size=1m", b"mode=0711"])
    try:
        assert kernel.fstatfs(tree).magic == 0x01021994
        assert stat.S_IMODE(os.fstat(tree).st_mode) == 0o711
        assert os.fstatvfs(tree).f_blocks * os.fstatvfs(tree).f_frsize == 1 << 20
        kernel.remount(tree, [b"size=2m"])
        assert os.fstatvfs(tree).f_blocks * os.fstatvfs(tree).f_frsize == 2 << 20
        with pytest.raises(OSError, match=r"nonsense: .*nonsense"):
            kernel.remount(tree, [b"nonsense"])
    finally:
        os.close(tree)


@pytest.mark.parametrize(
    ("fs_type", "options", "why"),
    [
        (b"nonsense", [], "fsopen"),
        (b"tmpfs", [b"nonsense=1"], "nonsense: Invalid argument; .*nonsense"),
        (b"tmpfs", [b"size=many"], "size: Invalid argument"),
        (b"ext4", [], "fsconfig|fsopen"),
    ],
)
def test_refused(fs_type: bytes, options: list[bytes], why: str) -> None:
    """The error has what the filesystem says."""
    with pytest.raises(OSError, match=why):
        kernel.new_mount(fs_type, b"/dev/null" if fs_type == b"ext4" else b"source", options)


def test_private_namespace(tmp_path: Path) -> None:
    """Mounts of it are seen nowhere else; a clone of one outlives it."""
    here = Path("/proc/self/ns/mnt").readlink()
    with kernel.PrivateNamespace():
        assert Path("/proc/self/ns/mnt").readlink() != here
        tree = kernel.new_mount(b"tmpfs", b"source", [])
        with support.opened(tmp_path, os.O_PATH) as point:
            kernel.attach(tree, point)
        (tmp_path / "file").write_text("content")
        clone = kernel.clone_mount(tree)
        os.close(tree)
    assert not (tmp_path / "file").exists()
    fd = os.open("file", os.O_RDONLY, dir_fd=clone)
    assert os.read(fd, 100) == b"content"
    os.close(fd)
    os.close(clone)


def test_private_namespace_that_is_left_by_an_error() -> None:
    with pytest.raises(DetachedError), kernel.PrivateNamespace():
        raise DetachedError("in the midst of it")


def records(directory: int, *more: Mount | Node | BoundSocket, options: str = "") -> Records:
    """Records of one filesystem, and others."""
    writer = RecordWriter(directory, Header(format=FORMAT))
    writer.filesystem(memory_record(7, options=options))
    for record in more:
        if isinstance(record, Mount):
            writer.mount(record)
        elif isinstance(record, BoundSocket):
            writer.bound_socket(record)
        else:
            writer.node(record)
    writer.flush()
    return read_records(directory)


def mount(number: int, path: bytes, **fields: int) -> Mount:
    """A mount of the filesystem."""
    return Mount(
        mnt_id=number,
        origin=RECREATED,
        filesystem=7,
        root_type=fields.pop("root_type", stat.S_IFDIR),
        superblock=Superblock(fs_type=b"tmpfs"),
        bind_source=BindSource(path=path),
        **fields,
    )


def test_make_filesystems(directory: int) -> None:
    """With the roots of its mounts, unless they are files or come with the deleted ones.

    And with the directories that sockets are to be bound in.
    """
    node = Node(filesystem=7, path=b"a/file", mode=stat.S_IFREG | 0o600, inode=Inode(size=5))
    found = records(
        directory,
        mount(1, b"b/c"),
        mount(2, b"file", root_type=stat.S_IFREG),
        mount(3, b"gone", root_deleted=1),
        node,
        BoundSocket(id=1, mnt_id=1, name=b"of/socket", directory=b"d"),
        BoundSocket(id=2, mnt_id=3, name=b"/absolute/socket", directory=b"nowhere"),
        options="size=1m",
    )
    with support.opened(Path("/proc"), os.O_PATH) as proc:
        means = Means(-1, True, proc=proc)
        with kernel.PrivateNamespace():
            make_filesystems(found, means, {})
            (top,) = means.tops.values()
            assert sorted(os.listdir(f"/proc/self/fd/{top}")) == ["a", "b"]
            assert os.listdir(f"/proc/self/fd/{top}/b/c/d") == ["of"]
            assert os.fstatvfs(top).f_blocks * os.fstatvfs(top).f_frsize > 1 << 20
            settle_filesystems(found, means)
            assert os.fstatvfs(top).f_blocks * os.fstatvfs(top).f_frsize == 1 << 20
            os.close(top)
