"""A detached mount's id-map comes back where the kernel tells it; else the dump is refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import MakeScenario
from .harness import kernel, look
from .harness.agent import Check, Task
from .harness.placement import Bind, Placement, populate_tree

CLONE_NEWUSER = 0x10000000
OWNER = 70000


@pytest.fixture
def userns() -> Iterator[int]:
    """A user namespace whose map moves root to OWNER, and OWNER + 1 to 5."""
    ready_read, ready_write = os.pipe()
    hold_read, hold_write = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(hold_write)
        kernel.unshare(CLONE_NEWUSER)
        os.write(ready_write, b"!")
        os.read(hold_read, 1)  # until the map is written and the namespace is held by its fd
        os._exit(0)
    os.read(ready_read, 1)
    for name in ("uid_map", "gid_map"):
        Path(f"/proc/{pid}/{name}").write_text(f"0 {OWNER} 2\n5 {OWNER + 5} 1\n")
    fd = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY)
    for end in (ready_read, ready_write, hold_read, hold_write):
        os.close(end)
    os.waitpid(pid, 0)
    yield fd
    os.close(fd)


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
