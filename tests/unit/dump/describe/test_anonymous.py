"""From a file on an anonymous mount to the records of its tree."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from criu_detached import kernel
from criu_detached.dump.describe import anonymous
from criu_detached.dump.describe.search import describe_mount
from criu_detached.dump.describe.source_mount import SourceMount
from criu_detached.dump.describe.sources import SourceFinder
from criu_detached.dump.observe import trees
from criu_detached.dump.observe.machine import Machine
from criu_detached.dump.open_file import OpenFile
from criu_detached.errors import DetachedError
from criu_detached.images.records import Mount
from criu_detached.kernel.fds import Fds

from ... import support
from ...support import StandInCriu


class Ground:
    """An anonymous tree: tree/ with sub/ mounted at dir/a, and one file at dir/a/b."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for name in ("tree/dir/a", "sub", "alone"):
            (path / name).mkdir(parents=True)
        for name in ("tree/file", "tree/dir/inner", "sub/b", "sub/file", "one", "alone/file"):
            (path / name).write_text(name)
        with ExitStack() as stack:
            at = path / "tree" / "dir" / "a"
            stack.enter_context(support.mounted(at, "--bind", str(path / "sub")))
            stack.enter_context(support.mounted(at / "b", "--bind", str(path / "one")))
            self.tree = self.clone("tree")
        self.fds = [self.tree]
        self._sources = SourceFinder(StandInCriu(-1, Path("/")))
        self.mounts: list[SourceMount] = []
        self.machine = Machine()

    def clone(self, name: str) -> int:
        """The tree fd of a clone of a directory with all that is mounted below."""
        flags = kernel.OPEN_TREE_CLONE | kernel.OPEN_TREE_CLOEXEC | 0x8000
        return kernel.open_tree(-100, os.fsencode(self.path / name), flags)

    def open(self, name: str, flags: int = os.O_RDONLY, tree: int | None = None) -> int:
        """Open something in the tree."""
        fd = os.open(name, flags, dir_fd=self.tree if tree is None else tree)
        self.fds.append(fd)
        return fd

    def describe(self, fd: int) -> list[Mount]:
        """The records of all mounts of the tree of a file, as mounts.py makes them."""
        file = OpenFile.of(fd)
        tree = anonymous.find_tree(file, self.machine)
        with Fds() as kept, tree or kept:
            new = (
                tree.new_mounts(self.machine)
                if tree
                else [anonymous.mount_by_itself(file, kept, self.machine)]
            )
            found = [describe_mount(one, self._sources) for one in new]
        self.mounts += found
        return [mount.record for mount in found]

    def relative(self, link: bytes, mnt_id: int) -> bytes:
        """The link of a file from the root of its mount, of one from the root of the tree."""
        (mount,) = (mount for mount in self.mounts if mount.record.mnt_id == mnt_id)
        return mount.rooted(OpenFile.of(self.tree).seen_as(link)).link

    def note(self, fd: int) -> None:
        """A file of the mount that was described last is recorded."""
        self.mounts[-1].note(OpenFile.of(fd))

    def close(self) -> None:
        for mount in self.mounts:
            mount.source.close()
            if mount.root is not None:
                mount.root.close()
        for fd in self.fds:
            os.close(fd)


@pytest.fixture
def ground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ground]:
    """Where anonymous mounts can be told; the fd of each tree is in a dumped process."""
    monkeypatch.setattr(anonymous, "is_tree_held", lambda machine, mnt_id: True)
    with support.opened(tmp_path, os.O_PATH) as directory:
        clone = support.clone_mount(directory)
    told = trees.view(clone)
    os.close(clone)
    if not told:
        pytest.skip("this kernel (before 6.15) clones no anonymous mount")
    made = Ground(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("name", [".", "dir", "dir/a"])
def test_any_directory_shows_the_tree(ground: Ground, name: str) -> None:
    root, sub, one = ground.describe(ground.open(name))
    assert all(mount.anonymous for mount in (root, sub, one))
    assert [root.parent, sub.parent, one.parent] == [0, root.mnt_id, sub.mnt_id]
    assert [root.place, sub.place, one.place] == [b"", b"dir/a", b"b"]
    assert [mount.root.rsplit(b"/", 1)[1] for mount in (root, sub, one)] == [
        b"tree",
        b"sub",
        b"one",
    ]
    for mount, name in ((root, "file"), (sub, "dir/a/file"), (one, "dir/a/b")):
        assert kernel.fstat(ground.open(name)).mnt_id == mount.mnt_id


def test_links(ground: Ground) -> None:
    """They lead from the root of the tree; records lead from the root of a mount."""
    root, sub, one = ground.describe(ground.tree)
    relative = ground.relative
    assert relative(b"/dir/inner", root.mnt_id) == b"/dir/inner"
    assert relative(b"/dir/a/file (deleted)", sub.mnt_id) == b"/file (deleted)"
    assert relative(b"/dir/a", sub.mnt_id) == relative(b"/dir/a/b", one.mnt_id) == b"/"
    with pytest.raises(DetachedError, match="changed during the dump"):
        relative(b"/dir/inner", sub.mnt_id)
    for link in (b"/dir/a", b"/dir/a/inner (deleted)"):
        with pytest.raises(DetachedError, match=f"mount {sub.mnt_id} .* covers it"):
            relative(link, root.mnt_id)


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process has a directory of the tree."""
    monkeypatch.setattr(anonymous, "held_directories", lambda machine, known: iter(()))


def test_file_alone(ground: Ground, nobody: None) -> None:
    """Its path tells where the mount's root is."""
    (mount,) = ground.describe(ground.open("dir/inner"))
    assert mount.root.endswith(b"/tree") and mount.anonymous and not mount.parent


def test_file_on_a_child_alone(ground: Ground, nobody: None) -> None:
    with pytest.raises(DetachedError, match="no directory is to be found"):
        ground.describe(ground.open("dir/a/b"))


def test_directory_is_looked_for(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file leads to its tree by any directory of it that a process has."""
    others = [ground.path, ground.path / "alone"]
    fds = [os.open(path, os.O_PATH) for path in others] + [ground.open("dir", os.O_PATH)]
    monkeypatch.setattr(anonymous, "held_directories", lambda machine, known: iter(fds))
    assert len(ground.describe(ground.open("dir/a/b"))) == 3
    for fd in fds[:2]:
        os.close(fd)


def test_directory_that_comes_late(ground: Ground, nobody: None) -> None:
    """The tree of a recorded file is larger than its record."""
    ground.describe(ground.open("dir/inner"))
    directory = ground.open("dir")
    with pytest.raises(DetachedError, match="found too late"):
        ground.note(directory)


def test_late_directory_of_a_tree_of_one_mount(ground: Ground, nobody: None) -> None:
    alone = ground.clone("alone")
    ground.fds.append(alone)
    ground.describe(ground.open("file", tree=alone))
    ground.note(alone)


def test_tree_fd_keeps_the_tree_together(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """It must be in a dumped process, unless there is nothing to keep together."""
    asked: list[int] = []

    def ask(machine: Machine, mnt_id: int) -> bool:
        asked.append(mnt_id)
        return False

    monkeypatch.setattr(anonymous, "is_tree_held", ask)
    child = ground.open("dir/a")
    before = support.open_fds()
    with pytest.raises(DetachedError, match="in no dumped process"):
        ground.describe(child)
    assert support.open_fds() == before
    assert asked == [kernel.fstat(ground.tree).mnt_id]
    alone = ground.clone("alone")
    ground.fds.append(alone)
    ground.describe(alone)


def test_two_mounts_at_one_place(ground: Ground) -> None:
    at = ground.path / "tree" / "dir" / "a"
    sub, alone = str(ground.path / "sub"), str(ground.path / "alone")
    with support.mounted(at, "--bind", sub), support.mounted(at, "--bind", alone):
        tree = ground.clone("tree")
    ground.fds.append(tree)
    with pytest.raises(DetachedError, match="two mounts at one place"):
        ground.describe(tree)


def test_namespace_is_gone(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees, "view", lambda fd: [])
    for name in ("dir", "file"):
        with pytest.raises(DetachedError, match="mount namespace is gone"):
            ground.describe(ground.open(name))


def test_deleted_root(ground: Ground, nobody: None) -> None:
    """There is no looking at it, so it is described as a mount was before Linux 7.0."""
    alone = ground.clone("alone")
    ground.fds.append(alone)
    file = ground.open("file", tree=alone)
    (ground.path / "alone" / "file").unlink()
    (ground.path / "alone").rmdir()
    (mount,) = ground.describe(alone)
    assert mount.anonymous and mount.root_deleted and mount.root.endswith(b"/alone")
    ground.note(alone)
    assert kernel.fstat(file).mnt_id == mount.mnt_id
