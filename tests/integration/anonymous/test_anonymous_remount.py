"""Anonymous mounts of filesystems that nobody else shows, and that are mounted again."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from .. import disks
from ..conftest import MakeScenario
from ..filesystems.test_pseudo import FILES
from ..harness import kernel, look
from ..harness.agent import Check, Task, calls
from ..harness.kernel import umount2
from ..harness.placement import Placement
from ..harness.program import Program
from ..harness.scenario import Scenario
from ..hostile.test_refused_dump import refused
from .test_anonymous import NEEDS_CLONES, attached

pytestmark = pytest.mark.detached


def start(scenario: MakeScenario, program: Program, **arguments: Any) -> Scenario:
    """Start a program that mounts something; the test is skipped where the kernel cannot."""
    try:
        return scenario().start(program, **arguments)
    except AssertionError as error:
        if "fsmount" not in str(error):
            raise
        pytest.skip("this kernel mounts no such filesystem")


def hold_filesystem(task: Task, fs_type: str, name: str) -> Check:
    """The fd of a new mount, a directory and perhaps a file there."""
    task.detach()
    (tree,) = calls(f"answer(fsmount({fs_type!r}))")
    file = os.open(name, os.O_RDONLY, dir_fd=tree) if name else -1
    top = os.open(f"/proc/self/fd/{tree}", os.O_RDONLY)
    return lambda: [
        tree,
        bool(attached(task, tree)),
        file < 0 or os.pread(file, 1000, 0).decode(),
        len(os.listdir(top)) > 0,
    ]


def assert_kept(held: Scenario) -> None:
    """It is there after two restores, and the fd of the tree is one that can be attached."""
    before = held.ask()
    held.cycle().cycle()
    assert held.ask() == before
    assert look.is_anonymous(held.pid, before[0])
    (held.ground.base / "attach").mkdir()
    assert held.ask()[1] is True


OWN = ["cgroup2", "devpts", "mqueue", "proc", "sysfs", "tracefs"]


@NEEDS_CLONES
@pytest.mark.covers("tree_fd", "file", "directory", column="anonymous")
@pytest.mark.parametrize("fs_type", OWN)
def test_filesystem_of_the_kernel(scenario: MakeScenario, fs_type: str) -> None:
    """All is told of an anonymous one, so the same is restored before Linux 7.0."""
    names = {**FILES, "mqueue": "", "proc": "filesystems"}
    assert_kept(start(scenario, hold_filesystem, fs_type=fs_type, name=names.get(fs_type, "")))


def hold_disk(task: Task, fs_type: str, device: str) -> Check:
    """What a process may have on a disk that it alone has mounted, and never attached."""
    task.detach()
    (tree,) = calls(f"answer(fsmount({fs_type!r}, source={device!r}))")
    os.chdir(f"/proc/self/fd/{tree}")
    os.makedirs("dir", exist_ok=True)
    file = os.open("dir/file", os.O_RDWR | os.O_CREAT)
    gone = os.open("gone", os.O_RDWR | os.O_CREAT)
    os.write(gone, b"gone")
    os.unlink("gone")

    def check() -> list[object]:
        os.write(file, b"+")
        written = os.pread(file, 100, 0).decode()
        return [tree, bool(attached(task, tree)), written, os.pread(gone, 9, 0).decode()]

    return check


@NEEDS_CLONES
@pytest.mark.covers("tree_fd", "file", "cwd", "deleted_file", column="anonymous")
@pytest.mark.covers("tree_fd", column="sole-held")
@pytest.mark.parametrize("fs_type", ["btrfs", "ext4"])
def test_disk(scenario: MakeScenario, tmp_path: Path, fs_type: str) -> None:
    with disks.disk(tmp_path, fs_type) as disk:
        point = tmp_path / "point"
        point.mkdir()
        disk.mount(point)  # skips where the kernel cannot
        umount2(point)
        held = scenario().start(hold_disk, fs_type=fs_type, device=disk.device)
        for number in range(1, 4):
            tree, attached_now, written, gone = held.ask()
            assert [attached_now, written, gone] == [False, "+" * number, "gone"]
            assert look.is_anonymous(held.pid, tree)
            if number < 3:
                held.cycle()
        (held.ground.base / "attach").mkdir()
        assert held.ask()[1] is True
        held.kill()
        disk.mount(point)
        assert (point / "dir" / "file").read_text() == "++++"
        umount2(point)


def overlay_options(path: Path) -> dict[str, str]:
    """Make the layers of an overlay, the lower one on a filesystem of its own if one is there."""
    for name in ("lowerdir", "upperdir", "workdir"):
        (path / name).mkdir(exist_ok=True)
    (path / "lowerdir" / "low").write_text("low")
    (path / "lowerdir" / "copied").write_text("to be ")
    return {name: str(path / name) for name in ("lowerdir", "upperdir", "workdir")}


def hold_overlay(task: Task, options: dict[str, str]) -> Check:
    """Files of an overlay's layers, and one that was copied up."""
    task.detach()
    (tree,) = calls(f"answer(fsmount('overlay', **{options!r}))")
    low = os.open("low", os.O_RDONLY, dir_fd=tree)
    copied = os.open("copied", os.O_RDWR | os.O_APPEND, dir_fd=tree)
    os.write(copied, b"copied")
    top = os.open(f"/proc/self/fd/{tree}", os.O_RDONLY)

    def check() -> list[object]:
        os.close(os.open("new", os.O_CREAT | os.O_RDWR, dir_fd=tree))
        found = [os.pread(fd, 100, 0).decode() for fd in (low, copied)]
        return [tree, bool(attached(task, tree)), *found, sorted(os.listdir(top))]

    return check


@NEEDS_CLONES
@pytest.mark.covers("tree_fd", "file", "directory", column="anonymous")
def test_overlay(scenario: MakeScenario, tmp_path: Path) -> None:
    """Its layers are told before Linux 7.0 as well."""
    assert_kept(start(scenario, hold_overlay, options=overlay_options(tmp_path)))
    assert (tmp_path / "upperdir" / "copied").read_text() == "to be copied"


def hold_one_file(task: Task, options: dict[str, str]) -> Check:
    """The fd of the tree, and a file of an overlay."""
    task.detach()
    (tree,) = calls(f"answer(fsmount('overlay', **{options!r}))")
    file = os.open("low", os.O_RDONLY, dir_fd=tree)
    return lambda: [tree, file, os.pread(file, 100, 0).decode()]


def test_overlay_that_others_hold(scenario: MakeScenario, tmp_path: Path) -> None:
    """A file of it has another device number than the overlay; it is found all the same."""
    (tmp_path / "lowerdir").mkdir()
    kernel.mount("lower", tmp_path / "lowerdir", "tmpfs")
    try:
        for _ in range(100):  # its inode numbers are others than those of the upper layer then
            (tmp_path / "lowerdir" / "unused").touch()
            (tmp_path / "lowerdir" / "unused").unlink()
        held = start(scenario, hold_one_file, options=overlay_options(tmp_path))
        tree, fd, _ = held.ask()
        file = kernel.get_fd(held.pid, fd)
        pipe = subprocess.PIPE
        with subprocess.Popen(["cat"], stdin=pipe, pass_fds=[file]) as other:
            os.close(file)
            refused(held, f"process {other.pid} holds that too")
            other.communicate()
        held.cycle()
        assert held.ask() == [tree, fd, "low"]
    finally:
        umount2(tmp_path / "lowerdir", kernel.MNT_DETACH)


@pytest.mark.covers("file", column="anonymous")
@pytest.mark.parametrize("placement", [Placement.HOST, Placement.HOST_SOURCE], ids=str)
def test_ramfs(scenario: MakeScenario, placement: Placement) -> None:
    held = scenario(placement).start(hold_ramfs)
    held.cycle().cycle()
    assert held.ask() == "data"


def hold_ramfs(task: Task) -> Check:
    """A file of a filesystem without handles, and the fd of its tree."""
    task.detach()
    (tree,) = calls("answer(fsmount('ramfs'))")
    os.mkdir("dir", dir_fd=tree)
    file = os.open("dir/file", os.O_RDWR | os.O_CREAT, dir_fd=tree)
    os.write(file, b"data")
    return lambda: os.pread(file, 9, 0).decode()
