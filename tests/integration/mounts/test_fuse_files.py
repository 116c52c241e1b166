"""Files of a filesystem that tells little of them: their numbers are large, their blocks none."""

from __future__ import annotations

import mmap
import os
from functools import partial
from pathlib import Path

import pytest

from ..conftest import MakeScenario
from ..fuse_files import FIRST_INODE, mount_files
from ..harness.agent import Check, Task
from ..harness.placement import Bind, Placement, Shape
from .test_served import WHOLE

HIDDEN = ".fuse_hidden"


def populate(source: Path) -> None:
    """Two files; there are no directories."""
    for name in ("file", "other"):
        (source / name).write_text(f"content of {name}")


def hold_files(task: Task, names: list[str], deleted: bool) -> Check:
    """Files, as they are or deleted."""
    fds = [os.open(task.path(name), os.O_RDWR) for name in names]
    if deleted:
        for name in names:
            os.unlink(task.path(name))
    task.detach()
    return lambda: [
        [os.pread(fd, 100, 0).decode(), os.fstat(fd).st_blocks, os.fstat(fd).st_ino] for fd in fds
    ]


@pytest.mark.parametrize("deleted", [False, True])
def test_files(scenario: MakeScenario, deleted: bool) -> None:
    """Whether a file has a content, its blocks do not tell."""
    held = scenario(binds=WHOLE, mount_source=mount_files, populate=populate)
    names = ["file", "other"]
    held.start(hold_files, names=names, deleted=deleted)
    before = held.ask()
    assert [[text, blocks] for text, blocks, _ in before] == [[f"content of {n}", 0] for n in names]
    assert all(number > FIRST_INODE for *_, number in before)
    held.cycle()
    after = held.ask()
    assert [each[:2] for each in after] == [each[:2] for each in before]
    assert deleted or after == before


@pytest.mark.parametrize("where", [Placement.HOST, Placement.NAMESPACE], ids=lambda p: p.value)
def test_hidden(scenario: MakeScenario, where: Placement) -> None:
    """The name that a server gives to a deleted file is gone when the process is.

    Without a name the server knows no file, so the restored ones have such names again.
    """
    hiding = partial(mount_files, hides=True)
    held = scenario(where, binds=WHOLE, mount_source=hiding, populate=populate)
    held.start(hold_files, names=["other", "file"], deleted=True)
    names = os.listdir(held.ground.source)
    assert len(names) == 2 and all(name.startswith(HIDDEN) for name in names)
    before = held.ask()
    held.cycle()
    assert [each[:2] for each in held.ask()] == [each[:2] for each in before]
    names = os.listdir(held.ground.source)
    assert len(names) == 2 and all(name.startswith(HIDDEN) for name in names)
    held.kill()
    assert os.listdir(held.ground.source) == []


def hold_root(task: Task) -> Check:
    """The file that the mount is of."""
    fd = os.open(task.path(), os.O_RDWR)
    task.detach()
    return lambda: [os.pread(fd, 100, 0).decode(), os.readlink(f"/proc/self/fd/{fd}")]


def test_hidden_root(scenario: MakeScenario) -> None:
    """It loses its name when the mount is cloned from there."""
    hiding = partial(mount_files, hides=True)
    one_file = [Bind(Shape("file", "file", None))]
    held = scenario(binds=one_file, mount_source=hiding, populate=populate).start(hold_root)
    (held.ground.source / "file").unlink()
    before = held.ask()
    assert before[0] == "content of file"
    held.cycle()
    assert held.ask() == before
    held.kill()
    assert os.listdir(held.ground.source) == ["other"]


def hold_linked(task: Task) -> Check:
    """A file with two names, of which one is deleted; whoever asks writes to it."""
    os.link(task.path("file"), task.path("lasting"))
    fd = os.open(task.path("file"), os.O_RDWR)
    os.unlink(task.path("file"))
    task.detach()

    def check() -> str:
        os.pwrite(fd, b"changed", 0)
        return os.readlink(f"/proc/self/fd/{fd}")

    return check


def test_name_that_lasts(scenario: MakeScenario) -> None:
    """The file is that one after the restore, whatever other name the server gives it."""
    hiding = partial(mount_files, hides=True)
    held = scenario(binds=WHOLE, mount_source=hiding, populate=populate).start(hold_linked)
    lasting = held.ground.source / "lasting"
    held.cycle()
    assert lasting.read_text() == "content of file"
    assert held.ask() == "/file (deleted)"
    assert lasting.read_text() == "changed of file"
    held.kill()
    assert sorted(os.listdir(held.ground.source)) == ["lasting", "other"]


def hold_fifo(task: Task) -> Check:
    """A FIFO whose name is deleted."""
    os.mkfifo(task.path("fifo"))
    fd = os.open(task.path("fifo"), os.O_RDWR)
    os.unlink(task.path("fifo"))
    task.detach()
    return lambda: os.readlink(f"/proc/self/fd/{fd}")


def test_fifo(scenario: MakeScenario) -> None:
    """A server learns of regular files alone that they are open.

    Most would even say no more what it is, and CRIU fails.
    """
    held = scenario(binds=WHOLE, mount_source=mount_files, populate=populate).start(hold_fifo)
    held.dump().failed("criu-detached: .*it is deleted, and no regular file: .* [(]FUSE[)]")
    assert held.ask() == "/fifo (deleted)"


def hold_hidden(task: Task) -> Check:
    """Two files, one of which gets another name when it is deleted, and is opened by that."""
    fds = [os.open(task.path(name), os.O_RDWR) for name in ("other", "file")]
    os.unlink(task.path("file"))
    [name] = [name for name in os.listdir(task.path()) if name != "other"]
    fds.append(os.open(task.path(name), os.O_RDWR))
    os.close(fds.pop(1))
    task.detach()
    return lambda: [os.pread(fd, 100, 0).decode() for fd in fds]


def test_opened_by_hidden_name(scenario: MakeScenario) -> None:
    """NFS shows all deleted files so: nothing says that they are, but the name."""
    hiding = partial(mount_files, hides=True)
    held = scenario(binds=WHOLE, mount_source=hiding, populate=populate).start(hold_hidden)
    held.dump().failed("criu-detached: .*it is deleted, and its filesystem keeps it .*: close it")
    assert held.ask() == ["content of other", "content of file"]


def hold_mapped(task: Task) -> Check:
    """A file that is deleted, and one that is also mapped."""
    fds = [os.open(task.path(name), os.O_RDWR) for name in ("file", "other")]
    shared = mmap.mmap(fds[1], 5, prot=mmap.PROT_READ)
    os.unlink(task.path("file"))
    task.detach()

    def check() -> list[list[object]]:
        os.pwrite(fds[1], b"wrote", 0)
        files = [[os.pread(fd, 100, 0).decode(), os.fstat(fd).st_ino] for fd in fds]
        return [*files, [shared[:].decode()]]

    return check


@pytest.mark.parametrize("where", [Placement.HOST, Placement.NAMESPACE], ids=lambda p: p.value)
def test_numbers_that_change(scenario: MakeScenario, where: Placement) -> None:
    """Inode numbers of the restored files are others, and those that were may be anybody's."""
    renumbering = partial(mount_files, hides=True, numbers="nodes")
    held = scenario(where, binds=WHOLE, mount_source=renumbering, populate=populate)
    held.start(hold_mapped)
    for _ in range(2):
        before = held.ask()
        held.cycle()
        after = held.ask()
        assert [each[0] for each in after] == ["content of file", "wrotent of other", "wrote"]
        assert not {each[1] for each in after[:2]} & {each[1] for each in before[:2]}


def hold_replaced(task: Task, then: str) -> Check:
    """A deleted file, and the one that has its name now, or had it after it."""
    fds = [os.open(task.path("file"), os.O_RDWR)]
    os.unlink(task.path("file"))
    if then != "gone":
        fds.append(os.open(task.path("file"), os.O_RDWR | os.O_CREAT))
        os.write(fds[1], b"CONTENT OF FILE")
    if then == "deleted":
        os.unlink(task.path("file"))
    if then == "last":  # CRIU dumps fds in the order of their numbers
        fds.append(os.dup(fds[0]))
        os.close(fds.pop(0))
    task.detach()
    return lambda: [os.pread(fd, 100, 0).decode() for fd in fds]


@pytest.mark.parametrize("then", ["gone", "there", "deleted", "last"])
@pytest.mark.parametrize("hides", [True, False])
def test_numbers_alike(scenario: MakeScenario, then: str, hides: bool) -> None:
    """A number does not tell that a file is the one of another fd, or that a name is its."""
    alike = partial(mount_files, hides=hides, numbers="alike")
    held = scenario(binds=WHOLE, mount_source=alike, populate=populate)
    held.start(hold_replaced, then=then)
    if then == "gone":
        held.cycle()
        assert held.ask() == ["content of file"]
    else:
        before = held.ask()
        held.dump().failed("criu-detached: .*file.* repeats inode numbers")
        assert held.ask() == before
