"""What is seen of an anonymous mount is what an attached one would show."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from criu_detached import kernel
from criu_detached.dump.observe import trees
from criu_detached.kernel import MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY, mountinfo, namespaces
from criu_detached.kernel.statmount import StatMount

from ... import support


def no_namespace_walk() -> Iterator[int]:
    """mount_ns_fds() before Linux 6.12, and in a PID namespace."""
    raise OSError(errno.EPERM, "NS_MNT_GET_NEXT")


@pytest.fixture(params=["walk", "processes"], autouse=True)
def ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to find the namespace that a mount was made in."""
    if request.param == "processes":
        monkeypatch.setattr(namespaces, "mount_ns_fds", no_namespace_walk)


def seen(fd: int) -> list[StatMount]:
    """What is seen; nothing stays open, and nothing is mounted."""
    before = support.open_fds(), mountinfo_text()
    found = trees.view(fd)
    assert (support.open_fds(), mountinfo_text()) == before
    return found


def mountinfo_text() -> str:
    return Path("/proc/self/mountinfo").read_text()


def test_root(tree: int, tmp_path: Path) -> None:
    kernel.mount_setattr(tree, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID, 0)
    (found,) = seen(tree)
    attached = support.mount_of(tmp_path)
    assert (found.sb_dev, found.fs_type) == (attached.dev, attached.fs_type)
    assert found.mnt_root.endswith(b"/tree")
    assert found.mnt_attr == MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID
    assert (found.uid_map, found.gid_map) == ([], [])


def test_file(tree: int) -> None:
    """What is asked for is the root of what is seen."""
    fd = os.open("dir/file", os.O_RDONLY, dir_fd=tree)
    (found,) = seen(fd)
    os.close(fd)
    assert found.mnt_root.endswith(b"/tree/dir/file")


def test_children(tree: int, tmp_path: Path) -> None:
    """Parents come first; each is where it is in the tree."""
    with support.mounted(tmp_path / "tree" / "dir", "-t", "tmpfs", "none"):
        (tmp_path / "tree" / "dir" / "file").touch()
        with support.mounted(tmp_path / "tree" / "dir" / "file", "--bind", str(tmp_path / "one")):
            whole = kernel.open_tree(
                -100,
                os.fsencode(tmp_path / "tree"),
                kernel.OPEN_TREE_CLONE | kernel.OPEN_TREE_CLOEXEC | 0x8000,
            )
    found = seen(whole)
    os.close(whole)
    top = found[0].mnt_point
    assert [one.mnt_point.removeprefix(top) for one in found] == [b"", b"/dir", b"/dir/file"]
    assert found[1].mnt_root == b"/" and found[2].mnt_root.endswith(b"/one")


def test_detached(tree: int, tmp_path: Path) -> None:
    with support.detached(tmp_path / "mnt", tmp_path / "tree") as fd:
        assert seen(fd) == []


def test_deleted(tree: int) -> None:
    """It is anonymous, but there is no looking at it."""
    fd = os.open("one", os.O_RDWR | os.O_CREAT, dir_fd=tree)
    os.unlink("one", dir_fd=tree)
    with pytest.raises(FileNotFoundError):
        seen(fd)
    os.close(fd)


def test_clone(tree: int, tmp_path: Path) -> None:
    """It is of one mount alone: what another one covered is seen."""
    with support.mounted(tmp_path / "tree" / "dir", "-t", "tmpfs", "none"):
        flags = kernel.OPEN_TREE_CLONE | kernel.OPEN_TREE_CLOEXEC | 0x8000
        whole = kernel.open_tree(-100, os.fsencode(tmp_path / "tree"), flags)
    before = support.open_fds(), mountinfo_text()
    clone = trees.clone(whole)
    assert os.listdir(f"/proc/self/fd/{whole}/dir") == []
    assert os.listdir(f"/proc/self/fd/{clone}/dir") == ["file"]
    assert not os.get_inheritable(clone)
    os.close(clone)
    assert (support.open_fds(), mountinfo_text()) == before
    os.close(whole)


def test_clone_of_a_detached_mount(tree: int, tmp_path: Path) -> None:
    """There is none, and no fd is left of the attempt."""
    with support.detached(tmp_path / "mnt", tmp_path / "tree") as fd:
        before = support.open_fds()
        with pytest.raises(OSError, match="in no mount namespace"):
            trees.clone(fd)
        assert support.open_fds() == before


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[int]:
    """The tree fd of a clone of a directory."""
    (tmp_path / "tree" / "dir").mkdir(parents=True)
    (tmp_path / "tree" / "dir" / "file").touch()
    (tmp_path / "mnt").mkdir()
    (tmp_path / "one").touch()
    with support.opened(tmp_path / "tree", os.O_PATH) as directory:
        clone = support.clone_mount(directory)
    try:
        if not trees.view(clone):
            pytest.skip("this kernel (before 6.15) clones no anonymous mount")
        yield clone
    finally:
        os.close(clone)


def test_every_namespace_is_tried(tree: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when there are more of them than are tried at once."""
    own = os.open("/proc/self/ns/net", os.O_RDONLY)  # not to be entered as a mount namespace
    rightful = list(trees._namespaces())  # closed by now, but counted

    def many() -> Iterator[int]:
        yield from [own] * (2 * trees._NAMESPACES_AT_ONCE)
        fd = os.open("/proc/self/ns/mnt", os.O_RDONLY)
        try:
            yield fd
        finally:
            os.close(fd)

    assert rightful
    monkeypatch.setattr(trees, "_namespaces", many)
    assert len(seen(tree)) == 1
    os.close(own)


def test_mounts_of_this_namespace_stay_unseen(tree: int) -> None:
    """A clone is attached where nobody sees it, not even for a moment."""
    ids = {mount.mnt_id for mount in mountinfo.read_mountinfo()}
    seen(tree)
    assert {mount.mnt_id for mount in mountinfo.read_mountinfo()} == ids
