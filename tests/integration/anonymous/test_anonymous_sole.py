"""Anonymous mounts of filesystems that nobody else shows: new ones, and those unmounted since."""

from __future__ import annotations

import mmap
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ..conftest import MakeScenario
from ..deleted.test_deleted import hold_directories
from ..files.test_in_flight import hold_in_flight
from ..files.test_locks import cycle_with_locks, hold_leases, hold_locks, hold_ofd_locks
from ..filesystems.test_tmpfs import ITEMS, hold_life, lives_on
from ..harness import kernel, look
from ..harness.agent import CALLS, Check, Task, calls
from ..harness.placement import CONTENT, Bind, Placement
from ..harness.program import Program
from ..harness.scenario import Scenario
from ..hostile.test_refused_dump import refused
from ..soleheld import PLACES, sole
from ..tasks.test_processes import hold_family
from .test_anonymous import (
    BRANCHES,
    NEEDS_CLONES,
    TREE,
    attached,
    close_tree,
    hold_branches,
    run,
    tree_fd_of,
    with_deeper,
)

pytestmark = pytest.mark.detached

COLUMN = "anonymous"


# --- what fsmount gave ---

OPTIONS = {"size": "8m", "nr_inodes": "100", "mode": "711", "huge": "never"}


def hold_new(task: Task, options: dict[str, str], fill: bool) -> Check:
    """The fd of a new filesystem in memory, and perhaps much in it.

    When the runner makes a directory for it, the tree is attached there, or its fd is closed.
    """
    task.detach()
    (tree,) = calls(f"answer(fsmount('tmpfs', 2, **{options!r}))")
    if fill:
        os.mkdir("dir", 0o750, dir_fd=tree)
        file = os.open("file", os.O_RDWR | os.O_CREAT, dir_fd=tree)
        os.write(file, b"0123456789")
        again = os.open("file", os.O_RDONLY, dir_fd=tree)
        os.chdir(f"/proc/self/fd/{tree}/dir")
        gone = os.open("gone", os.O_RDWR | os.O_CREAT)
        os.write(gone, b"gone")
        os.unlink("gone")
        shared = mmap.mmap(file, 10)
        top = os.open(f"/proc/self/fd/{tree}", os.O_RDONLY)

    def check() -> list[object]:
        if os.path.isdir(os.path.join(task.base, "close")):
            os.close(tree)
            os.rmdir(os.path.join(task.base, "close"))
            return [file]
        facts, fs = os.fstat(tree), os.fstatvfs(tree)
        found = [tree, attached(task, tree), oct(facts.st_mode), fs.f_blocks, fs.f_files]
        found.append(fs.f_flag & os.ST_NOSUID)
        if fill:
            shared[:1] = b"S"
            found += [os.pread(again, 10, 0).decode(), os.pread(gone, 9, 0).decode()]
            found += [
                os.readlink("/proc/self/cwd"),
                os.fstat(gone).st_nlink,
                sorted(os.listdir(top)),
            ]
            found += [os.stat("..").st_ino == facts.st_ino == os.fstat(top).st_ino]
        return found

    return check


@NEEDS_CLONES
@pytest.mark.covers(
    "tree_fd",
    "file",
    "directory",
    "o_path",
    "cwd",
    "shared_mapping",
    "deleted_file",
    column=COLUMN,
)
@pytest.mark.covers("tree_fd", column="sole-held")
@PLACES
def test_new_filesystem(scenario: MakeScenario, placement: Placement) -> None:
    """All that was in it is, on one mount, which the fd of the tree keeps anonymous."""
    held = scenario(placement).start(hold_new, options=OPTIONS, fill=True)
    before = held.ask()
    held.cycle()
    assert held.ask() == before
    tree, nothing, mode, _, inodes, nosuid, *found = before
    assert (nothing, mode, inodes, nosuid) == ([], "0o40711", 100, os.ST_NOSUID)
    assert found == ["S123456789", "gone", "/dir", 0, ["dir", "file"], True]
    assert look.is_anonymous(held.pid, tree)
    held.cycle()
    (held.ground.base / "attach").mkdir()
    assert held.ask()[1] == [True, "dir", "file", False]


@NEEDS_CLONES
@pytest.mark.covers("file", "directory", "shared_mapping", column="sole-held")
@PLACES
def test_dissolved(scenario: MakeScenario, placement: Placement) -> None:
    """With the fd of the tree the mount is dissolved; what is held is restored as detached."""
    held = scenario(placement).start(hold_new, options={}, fill=True).cycle()
    file = close_tree(held)
    for _ in range(2):
        held.cycle()
        assert look.is_detached(held.pid, file) and not look.is_anonymous(held.pid, file)
    with open(f"/proc/{held.pid}/fd/{file}") as opened:
        assert opened.read() == "0123456789"


@NEEDS_CLONES
@pytest.mark.covers("tree_fd", column=COLUMN)
@pytest.mark.parametrize("options", [{}, {"size": "1m", "huge": "always", "nr_inodes": "0"}])
def test_empty_filesystem(scenario: MakeScenario, options: dict[str, str]) -> None:
    """Nothing but the fd of its tree is held; all of its options are told before Linux 7.0 too."""
    held = scenario().start(hold_new, options=options, fill=False)
    before, told = held.ask(), options_of(held)
    held.cycle().cycle()
    assert (held.ask(), options_of(held)) == (before, told)
    assert look.is_anonymous(held.pid, before[0])


def options_of(held: Scenario) -> list[str]:
    """The options of the filesystem whose tree fd is held, as mountinfo shows a clone of it."""
    point = held.work / "options"
    point.mkdir(exist_ok=True)
    tree = os.open(f"/proc/{held.pid}/fd/{tree_fd_of(held)}", os.O_PATH)
    try:
        flags = kernel.OPEN_TREE_CLONE | kernel.AT_EMPTY_PATH
        clone = kernel.open_tree(tree, "", flags)
        kernel.move_mount(clone, point)
        os.close(clone)
        with open("/proc/self/mountinfo") as table:
            (found,) = (line.split(" - ")[1] for line in table if f" {point} " in line)
        kernel.umount2(point)
    finally:
        os.close(tree)
    return found.split()[2].split(",")


# --- mounts whose source is gone ---


@pytest.mark.covers(*ITEMS, column=COLUMN)
@PLACES
def test_life(scenario: MakeScenario, placement: Placement) -> None:
    lives_on(sole(scenario(placement, in_trees=True).start(hold_life)))


@pytest.mark.covers("deleted_directory", "cwd", column=COLUMN)
@PLACES
def test_deleted_directories(scenario: MakeScenario, placement: Placement) -> None:
    held = sole(scenario(placement, in_trees=True).start(hold_directories))
    expected = held.ask()
    held.cycle().cycle()
    assert held.ask() == expected


def hold_deleted_root(task: Task) -> Check:
    """The fd of a tree whose root is deleted, and a file that was in it."""
    (tree,) = calls(f"answer(clone({task.path()!r}))")
    file = os.open("file", os.O_RDONLY, dir_fd=tree)
    run("rm", "-r", task.path())
    task.detach()
    return lambda: [os.fstat(tree).st_nlink, os.pread(file, 100, 0).decode()]


@NEEDS_CLONES
@pytest.mark.covers("tree_fd", "deleted_directory", "deleted_file", column=COLUMN)
@PLACES
def test_deleted_root(scenario: MakeScenario, placement: Placement) -> None:
    held = sole(scenario(placement).start(hold_deleted_root)).cycle().cycle()
    assert held.ask() == [0, CONTENT]
    assert look.is_anonymous(held.pid, tree_fd_of(held))


@pytest.mark.covers("flock", "posix_lock", "ofd_lock", "lease", column=COLUMN)
@pytest.mark.parametrize(
    "program", [hold_locks, hold_ofd_locks, hold_leases], ids=lambda p: p.__name__
)
def test_locks(scenario: MakeScenario, program: Program) -> None:
    expected = sole(scenario(in_trees=True).start(program)).ask()
    held = sole(scenario(in_trees=True).start(program))
    cycle_with_locks(held)
    assert held.ask() == expected


@pytest.mark.covers("scm_rights", column=COLUMN)
@PLACES
def test_in_flight(scenario: MakeScenario, placement: Placement) -> None:
    held = scenario(placement, [Bind(), Bind()], in_trees=True).start(hold_in_flight, kind=1)
    sole(held).cycle().cycle()
    assert held.ask() == ["a", "34", ["inner"], "b", "45", ["inner"]]


@pytest.mark.covers("file", "cwd", column=COLUMN)
@PLACES
def test_family(scenario: MakeScenario, placement: Placement) -> None:
    held = sole(scenario(placement, in_trees=True).start(hold_family))
    before = held.ask()
    held.dump().succeeded()
    held.restore().succeeded()
    assert held.ask() == before


def hold_tree_in_flight(task: Task) -> Check:
    """A child has the fd of a tree, and it is on its way to this process; both share a file."""
    ours, theirs = socket.socketpair()
    tree, file = calls(
        "tree = fsmount('tmpfs'); file = os.open('file', os.O_RDWR | os.O_CREAT, dir_fd=tree)"
        "; answer(tree, file)"
    )
    task.detach()

    def child() -> Check:
        return lambda: [os.write(file, b"data"), os.listdir(f"/proc/self/fd/{tree}")]

    ask = task.fork(child)
    socket.send_fds(theirs, [b"!"], [tree])
    os.close(tree)

    def check() -> list[object]:
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
        found = [ask(), os.pread(file, 9, 0).decode(), os.listdir(f"/proc/self/fd/{fds[0]}")]
        socket.send_fds(theirs, [b"!"], fds)
        os.close(fds[0])
        return found

    return check


@pytest.mark.covers("tree_fd", "file", "scm_rights", column=COLUMN)
@PLACES
def test_shared_tree_fd(scenario: MakeScenario, placement: Placement) -> None:
    held = scenario(placement).start(hold_tree_in_flight)
    assert held.ask() == [[4, ["file"]], "data", ["file"]]
    held.cycle().cycle()
    assert held.ask() == [[4, ["file"]], "datadata", ["file"]]


# --- trees of several mounts ---


def hold_mixed(task: Task, new: bool) -> Check:
    """A tree with a mount of another filesystem in it, and one in that; a file of each.

    Args:
        task: gives the bind mounts.
        new: the root of the tree is a new filesystem, else the first mount in it is.
    """
    if new:
        (tree,) = calls("answer(fsmount('tmpfs'))")
        below = "one, other = clone({0!r}), clone({0!r})".format(task.path())
    else:
        (tree,) = calls(f"answer(clone({task.path()!r}))")
        below = f"one, other = fsmount('tmpfs'), clone({task.path()!r})"
    for name in ("file", "dir/inner"):
        path = f"/proc/self/fd/{tree}/{name}"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "a") as file:
            file.write(name)
    find = f"tree = get_fd({os.getpid()}, {tree})"
    move = "move_mount(one, tree, 'dir'); os.makedirs(f'/proc/self/fd/{one}/dir', exist_ok=True)"
    (one,) = calls(f"{find}; {below}; {move}; move_mount(other, one, 'dir'); answer(one)")
    files = [os.open("file", os.O_RDONLY, dir_fd=tree)]
    files.append(os.open("file", os.O_RDWR | os.O_CREAT, dir_fd=one))
    directory = os.open("dir/dir", os.O_RDONLY, dir_fd=tree)
    os.close(one)
    task.detach()

    def check() -> list[object]:
        above = os.open("../..", os.O_RDONLY, dir_fd=directory)
        found = [tree, *[os.pread(fd, 9, 0).decode() for fd in files]]
        found += [sorted(os.listdir(fd)) for fd in (above, directory)]
        os.close(above)
        target = os.path.join(task.base, "attach")
        if os.path.isdir(target):
            calls(f"move_mount(get_fd({os.getpid()}, {tree}), -100, {target!r}); answer(0)")
            found.append(os.path.ismount(f"{target}/dir/dir"))
            run("umount", "--recursive", "--lazy", "--no-mtab", f"{target}/dir")
            found.append(sorted(os.listdir(f"{target}/dir")))  # what another mount covered
            run("umount", "--lazy", "--no-mtab", target)
        return found

    return check


def assert_mixed(held: Scenario, answer: list[object]) -> None:
    """The tree is as it was, to the tasks and when it is attached."""
    tree, *found = held.ask()
    assert [tree, *found] == answer
    assert look.is_anonymous(held.pid, tree)
    (held.ground.base / "attach").mkdir()
    assert held.ask() == [*answer, True, ["inner"]]
    (held.ground.base / "attach").rmdir()


@NEEDS_CLONES
@pytest.mark.covers("tree_fd", "file", "directory", column=COLUMN)
@pytest.mark.parametrize("new", [True, False], ids=["new-root", "new-child"])
def test_mixed_tree(scenario: MakeScenario, every_placement: Placement, new: bool) -> None:
    """Some mounts of a tree have a bind source, and some have none."""
    held = scenario(every_placement).start(hold_mixed, new=new)
    answer = held.ask()
    assert answer[3] == (["dir", "file"] if new else TREE)
    held.cycle().cycle()
    assert_mixed(held, answer)


@NEEDS_CLONES
@pytest.mark.covers("tree_fd", "file", "directory", column="sole-held")
@pytest.mark.parametrize("new", [True, False], ids=["new-root", "new-child"])
def test_mixed_tree_of_sole_held(scenario: MakeScenario, new: bool) -> None:
    """No mount of the tree has a source any more; one filesystem is there twice."""
    held = sole(scenario().start(hold_mixed, new=new))
    answer = held.ask()
    held.cycle().cycle()
    assert_mixed(held, answer)


@NEEDS_CLONES
@pytest.mark.covers("tree_fd", "file", "directory", column="sole-held")
@PLACES
def test_branches(scenario: MakeScenario, placement: Placement) -> None:
    """A recursive clone, all mounts of it of one filesystem, which is unmounted by now."""
    held = scenario(placement, [Bind(), Bind(), Bind()], populate=with_deeper)
    sole(held.start(hold_branches)).cycle().cycle()
    tree, *found = held.ask()
    assert look.is_anonymous(held.pid, tree)
    assert found == [BRANCHES, TREE, []]
    (held.ground.base / "attach").mkdir()
    assert held.ask() == [tree, BRANCHES, TREE, [True, *TREE, False]]


# --- several mounts of one filesystem ---


def hold_several(task: Task) -> Check:
    """Two trees of one filesystem, one of them of a subdirectory, and two mounts that were such."""
    path = task.path()
    script = f"trees = [clone({path!r} + name) for name in ('', '/dir', '', '/dir')]"
    script += "; [set_attributes(tree, 1 << i) for i, tree in enumerate(trees)]; answer(*trees)"
    whole, part, *others = calls(script)
    task.detach()
    file = os.open("dir/inner", os.O_RDONLY, dir_fd=whole)
    files = [file, os.open("inner", os.O_RDONLY, dir_fd=part)]
    files.append(os.open("dir/inner", os.O_RDONLY, dir_fd=others[0]))
    files.append(os.open("inner", os.O_RDONLY, dir_fd=others[1]))
    os.close(others[0])
    os.close(others[1])
    flags = os.ST_RDONLY | os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC
    return lambda: [
        len({(os.fstat(fd).st_dev, os.fstat(fd).st_ino) for fd in files}),
        [os.fstatvfs(fd).f_flag & flags for fd in files],
        [sorted(os.listdir(f"/proc/self/fd/{tree}")) for tree in (whole, part)],
    ]


@NEEDS_CLONES
@pytest.mark.covers("tree_fd", "file", column="sole-held")
@pytest.mark.covers("tree_fd", "file", column=COLUMN)
@PLACES
def test_several_mounts(scenario: MakeScenario, placement: Placement) -> None:
    """Anonymous and detached ones show one filesystem, before and after."""
    held = sole(scenario(placement).start(hold_several)).cycle().cycle()
    assert held.ask() == [1, [1, 2, 4, 8], [TREE, ["inner"]]]
    inner = [fd for fd, file in look.open_files(held.pid).items() if file.link.endswith("inner")]
    assert [look.is_anonymous(held.pid, fd) for fd in inner] == [True, True, False, False]


# --- who else holds such a mount ---


def hold_child_of_tree(task: Task) -> Check:
    """A file of a filesystem that is mounted in the tree of a process that is not dumped."""
    file = os.open(task.path("file"), os.O_RDONLY)
    task.detach()
    return lambda: os.pread(file, 100, 0).decode()


@contextmanager
def tree_elsewhere(path: Path) -> Iterator[int]:
    """A process that has the fd of a tree; its pid."""
    script = "tree = clone(sys.argv[1], 0x8000); print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", CALLS + script, str(path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None and process.stdout.readline()
        yield process.pid
        process.communicate()


@NEEDS_CLONES
def test_held_through_a_tree(scenario: MakeScenario, tmp_path: Path) -> None:
    """Nothing that the process holds is on the filesystem, but it is mounted below."""
    held = scenario().start(hold_child_of_tree)
    kernel.mount("above", tmp_path, "tmpfs")
    (tmp_path / "child").mkdir()
    kernel.bind(held.ground.source, tmp_path / "child")
    with tree_elsewhere(tmp_path) as pid:
        kernel.umount2(tmp_path, kernel.MNT_DETACH)
        refused(sole(held), f"process {pid} holds it too")
    held.cycle()
    assert held.ask() == CONTENT


def hold_given_name(task: Task) -> Check:
    """A tree, and in it a file with a name that looks deleted, and one that is."""
    (tree,) = calls("answer(fsmount('tmpfs'))")
    task.detach()
    flags = os.O_RDWR | os.O_CREAT
    fds = [os.open(name, flags, dir_fd=tree) for name in ("x (deleted)", "y")]
    os.link("y", "z", src_dir_fd=tree, dst_dir_fd=tree)
    os.unlink("y", dir_fd=tree)
    return lambda: [
        sorted(os.listdir(f"/proc/self/fd/{tree}")),
        [os.readlink(f"/proc/self/fd/{fd}") for fd in fds],
    ]


def test_names(scenario: MakeScenario) -> None:
    held = scenario().start(hold_given_name).cycle()
    assert held.ask() == [["x (deleted)", "z"], ["/x (deleted)", "/y (deleted)"]]
