"""A detached mount's id-map comes back where the kernel tells it; else the dump is refused."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..conftest import MakeScenario
from ..harness import kernel, look
from ..harness.agent import Check, Task
from ..harness.placement import Bind, Placement, populate_tree, user_namespace
from ..hostile.test_refused_dump import refused
from ..soleheld import sole

OWNER = 70000


@pytest.fixture
def userns(mapped_ids: None) -> Iterator[int]:
    """A user namespace whose map moves root to OWNER, and OWNER + 1 to 5."""
    with user_namespace(f"0 {OWNER} 2\n5 {OWNER + 5} 1\n") as fd:
        yield fd


def hold_owned(task: Task) -> Check:
    """A file that root owns on the filesystem, and a directory to create files in."""
    fd = os.open(task.path("file"), os.O_RDONLY)
    task.detach()
    return lambda: [os.fstat(fd).st_uid, os.fstat(fd).st_gid]


@pytest.mark.detached
def test_id_map(scenario: MakeScenario, placement: Placement, userns: int) -> None:
    held = scenario(placement, [Bind(userns=userns)]).start(hold_owned)
    assert held.ask() == [OWNER, OWNER]
    if not kernel.has_statmount_by_fd():
        held.dump().failed("criu-detached.*id.?map")
        assert held.ask() == [OWNER, OWNER]
        return
    before = look.mount_of(held.pid, 3)
    assert before is not None and len(before.uid_map) == 2
    held.cycle()
    after = look.mount_of(held.pid, 3)
    assert after is not None
    assert (after.uid_map, after.gid_map) == (before.uid_map, before.gid_map)
    assert held.ask() == [OWNER, OWNER]


@pytest.mark.detached
def test_deleted_file(scenario: MakeScenario, placement: Placement, userns: int) -> None:
    """It is made anew by root, for whom this map has no place."""
    if not kernel.has_statmount_by_fd():
        pytest.skip("this kernel (before 7.0) does not tell id-maps")
    held = scenario(placement, [Bind(userns=userns)]).start(hold_owned)
    (held.ground.source / "tree" / "file").unlink()
    held.cycle()
    assert held.ask() == [OWNER, OWNER]
    held.cycle()
    assert held.ask() == [OWNER, OWNER]


@pytest.mark.detached
def test_id_mapped_source(scenario: MakeScenario, placement: Placement, userns: int) -> None:
    """The source has the very map: a clone of it has it too, and can be given no other."""
    if not kernel.has_statmount_by_fd():
        pytest.skip("this kernel (before 7.0) does not tell id-maps")

    def mount_mapped(source: Path) -> None:
        kernel.mount("source", source, "tmpfs")
        populate_tree(source)
        tree = kernel.open_tree(-100, str(source), kernel.OPEN_TREE_CLONE)
        kernel.mount_setattr_idmap(tree, userns)
        kernel.umount2(source, kernel.MNT_DETACH)
        kernel.move_mount(tree, source)
        os.close(tree)

    held = scenario(placement, mount_source=mount_mapped, populate=lambda source: None)
    held.start(hold_owned).cycle()
    assert held.ask() == [OWNER, OWNER]


@pytest.mark.detached
@pytest.mark.covers("tree_fd", "file", column="anonymous")
def test_anonymous(scenario: MakeScenario, placement: Placement, userns: int) -> None:
    """The id-map of an anonymous mount is told on every kernel that clones such a mount."""
    held = scenario(placement, [Bind(userns=userns)], in_trees=True).start(hold_owned)
    held.cycle().cycle()
    assert held.ask() == [OWNER, OWNER]


def hold_owned_tree(task: Task) -> Check:
    """A file and the directory that it is in; owners as they are seen there."""
    fd = os.open(task.path("file"), os.O_RDONLY)
    top = os.open(task.path(), os.O_RDONLY)
    task.detach()

    def owners(name: str) -> list[int]:
        facts = os.stat(name, dir_fd=top)
        return [facts.st_uid, facts.st_gid]

    def check() -> list[object]:
        acl = os.getxattr(f"/proc/self/fd/{top}/other", "system.posix_acl_access")
        return [os.fstat(fd).st_uid, owners("file"), owners("other"), owners("."), acl.hex()]

    return check


def populate_owned(source: Path) -> None:
    """The common tree; something in it has other owners, and an access control list."""
    populate_tree(source)
    os.chown(source / "tree" / "other", 1, 5)
    entries = ((1, 6, -1), (2, 7, 1), (4, 4, -1), (8, 4, 5), (16, 7, -1), (32, 0, -1))
    acl = b"".join(struct.pack("<HHi", *entry) for entry in entries)
    os.setxattr(source / "tree" / "other", "system.posix_acl_access", struct.pack("<I", 2) + acl)


@pytest.mark.detached
@pytest.mark.covers("file", "directory", column="sole-held")
@pytest.mark.covers("tree_fd", "file", "directory", column="anonymous")
@pytest.mark.parametrize("in_trees", [True, False], ids=["anonymous", "detached"])
def test_sole_held(scenario: MakeScenario, userns: int, in_trees: bool) -> None:
    """The filesystem has the owners that it had, and the mount shows others."""
    if not in_trees and not kernel.has_statmount_by_fd():
        pytest.skip("this kernel (before 7.0) does not tell the id-maps of detached mounts")
    held = scenario(binds=[Bind(userns=userns)], in_trees=in_trees, populate=populate_owned)
    held.start(hold_owned_tree)
    answer = sole(held).ask()
    assert answer[1:4] == [[OWNER] * 2, [OWNER + 1, OWNER + 5], [OWNER] * 2]
    assert (OWNER + 1).to_bytes(4, "little").hex() in answer[4]
    held.cycle().cycle()
    assert held.ask() == answer


@pytest.mark.detached
def test_owner_without_a_place(scenario: MakeScenario, userns: int) -> None:
    """Of a filesystem that is made anew every owner has to be told."""
    held = scenario(binds=[Bind(userns=userns)], in_trees=True).start(hold_owned)
    os.chown(held.ground.source / "tree" / "file", 7, 7)
    refused(sole(held), "an owner that its id-mapped mount has no place for")
