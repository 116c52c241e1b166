"""Mounts that were cloned or made and never attached: their tree fd, and the files of the tree.

The programs of other tests run here on such mounts: in_trees has their binds cloned and unmounted
before they start.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .. import disks
from ..conftest import MakeScenario
from ..deleted.test_deleted import (
    hold_deleted_file,
    hold_directories,
    hold_linked,
    hold_unnamed,
    listing,
)
from ..files.test_cwd import hold_cwd, hold_program, hold_root, populate_with_program
from ..files.test_ext_files import LOOP_CONTROL, hold_devices
from ..files.test_fds import EACH_KIND, hold_each_kind
from ..files.test_flags import hold_flags, states
from ..files.test_in_flight import hold_in_flight
from ..files.test_locks import cycle_with_locks, hold_leases, hold_locks, hold_ofd_locks
from ..files.test_mappings import hold_mappings
from ..files.test_terminals import PAIR, hold_pair, mount_devpts, no_files
from ..files.test_watches import NOTHING, OTHERS, OWN, change_through_source, hold_watches
from ..harness import kernel, look
from ..harness.agent import CALLS, Check, Task, calls
from ..harness.placement import CONTENT, SINGLE_FILE, SUBDIRECTORY, Bind, Placement, populate_tree
from ..harness.program import Program
from ..harness.programs import hold_file
from ..harness.scenario import Scenario
from ..hostile.test_refused_dump import refused
from ..sockets.test_bound_sockets import SOCKET_NAME, hold_datagrams
from ..soleheld import sole

pytestmark = pytest.mark.detached

# What is lost where an anonymous mount is taken for a detached one.
NEEDS_CLONES = pytest.mark.usefixtures("anonymous_mounts")

TREE = sorted(["file", "other", "dir", "link", "fifo", "null", "zero"])


# --- the fd of a tree ---


def cloned(path: str, recursive: bool = False) -> int:
    """The fd of a new tree."""
    (tree,) = calls(f"answer(clone({path!r}, {0x8000 if recursive else 0}))")
    return tree


def run(*command: str) -> None:
    """Run a program to its end."""
    os.waitpid(os.posix_spawnp(command[0], list(command), os.environ), 0)


def attached(task: Task, tree: int) -> list[object]:
    """Where the runner has made a directory for it, attach the tree; what is seen there.

    The last thing is whether the mount is in a peer group.
    """
    target = os.path.join(task.base, "attach")
    if not os.path.isdir(target):
        return []
    calls(f"move_mount(get_fd({os.getpid()}, {tree}), -100, {target!r}); answer(0)")
    found = [os.readlink(f"/proc/self/fd/{tree}") == target, *sorted(os.listdir(target))]
    with open("/proc/self/mountinfo") as table:
        found += ["shared:" in line for line in table if f" {target} " in line]
    run("umount", "--lazy", "--no-mtab", target)
    return found


def hold_tree(task: Task) -> Check:
    """The fd of a tree, another fd of its root, and a file.

    When the runner makes a directory for it, the tree is attached there, or the fds are closed.
    """
    tree = cloned(task.path())
    task.detach()
    again = os.open(".", os.O_PATH, dir_fd=tree)
    file = os.open("file", os.O_RDONLY, dir_fd=tree)

    def check() -> list[object]:
        if os.path.isdir(os.path.join(task.base, "close")):
            os.close(tree)
            os.close(again)
            os.rmdir(os.path.join(task.base, "close"))
            return [file]
        return [os.pread(file, 100, 0).decode(), tree, attached(task, tree)]

    return check


def close_tree(held: Scenario) -> int:
    """Have hold_tree close what keeps the tree; returns the file's fd."""
    (held.ground.base / "close").mkdir()
    (file,) = held.ask()
    return int(file)


@NEEDS_CLONES
@pytest.mark.covers("tree_fd", "file", "o_path", column="anonymous")
def test_tree_fd(scenario: MakeScenario, every_placement: Placement) -> None:
    """It is the fd of a tree again, however often: what it leads to can be attached."""
    held = scenario(every_placement).start(hold_tree)
    held.cycle().cycle()
    content, tree, _ = held.ask()
    assert content == CONTENT and look.is_anonymous(held.pid, tree)
    (held.ground.base / "attach").mkdir()
    assert held.ask() == [CONTENT, tree, [True, *TREE, False]]


def test_each_kernel(scenario: MakeScenario, placement: Placement) -> None:
    """Before Linux 6.15 the mount is taken for a detached one, and its files come back as well."""
    held = scenario(placement).start(hold_tree).cycle().cycle()
    content, tree, _ = held.ask()
    assert content == CONTENT and look.is_detached(held.pid, tree)


@NEEDS_CLONES
@pytest.mark.covers("tree_fd", column="anonymous")
def test_dissolved(scenario: MakeScenario, placement: Placement) -> None:
    """The mount is anonymous for as long as its fd is open."""
    held = scenario(placement).start(hold_tree).cycle()
    _, tree, _ = held.ask()
    file = next(fd for fd, opened in look.open_files(held.pid).items() if opened.link == "/file")
    assert look.is_anonymous(held.pid, tree) and look.is_anonymous(held.pid, file)
    assert close_tree(held) == file
    assert look.is_detached(held.pid, file) and not look.is_anonymous(held.pid, file)


@NEEDS_CLONES
@pytest.mark.covers("file", column="anonymous")
def test_tree_fd_elsewhere(scenario: MakeScenario, placement: Placement) -> None:
    """A process that is not dumped has the fd of the tree: to the others the mount is detached."""
    held = scenario(placement).start(hold_tree)
    _, tree, _ = held.ask()
    kept = kernel.get_fd(held.pid, tree)
    try:
        file = close_tree(held)
        assert look.is_anonymous(held.pid, file)
        held.cycle()
        assert look.is_detached(held.pid, file) and not look.is_anonymous(held.pid, file)
        held.cycle()
    finally:
        os.close(kept)
    assert os.pread(os.open(f"/proc/{held.pid}/fd/{file}", os.O_RDONLY), 100, 0).decode() == CONTENT


def hold_tree_of_file(task: Task) -> Check:
    """The fd of a tree that is one file, and nothing else."""
    tree = cloned(task.path())
    task.detach()

    def check() -> str:
        with open(f"/proc/self/fd/{tree}") as file:
            return file.read()

    return check


@NEEDS_CLONES
@pytest.mark.covers("tree_fd", column="anonymous")
def test_tree_of_one_file(scenario: MakeScenario, placement: Placement) -> None:
    held = scenario(placement, [Bind(SINGLE_FILE)]).start(hold_tree_of_file).cycle().cycle()
    assert held.ask() == CONTENT
    assert look.is_anonymous(held.pid, tree_fd_of(held))


def tree_fd_of(held: Scenario) -> int:
    """The only O_PATH fd."""
    files = look.open_files(held.pid)
    (fd,) = (fd for fd, file in files.items() if file.flags & os.O_PATH)
    return fd


# --- what is held in a tree ---


@pytest.mark.covers(
    "file",
    "directory",
    "o_path",
    "o_path_symlink",
    "fifo",
    "character_device",
    column="anonymous",
)
def test_each_kind(scenario: MakeScenario, every_placement: Placement) -> None:
    held = scenario(every_placement, in_trees=True).start(hold_each_kind)
    held.cycle().cycle()
    assert held.ask() == EACH_KIND


@pytest.mark.covers("o_nofollow", "o_append", "o_direct", "fowner", column="anonymous")
def test_flags(scenario: MakeScenario, placement: Placement) -> None:
    """As CRIU restores them for attached files."""
    held = scenario(placement, [Bind(SUBDIRECTORY)], in_trees=True).start(hold_flags)
    before = states(held.pid)
    held.cycle()
    assert states(held.pid) == before
    assert held.ask()["owner"] == 0


@pytest.mark.covers("block_device", "character_device", column="anonymous")
def test_devices(scenario: MakeScenario, placement: Placement, tmp_path: Path) -> None:
    """Devices that CRIU leaves to plugins."""
    (tmp_path / "image").write_bytes(b"0123456789".ljust(4096, b"."))
    with disks.loop_device(tmp_path / "image") as device:

        def populate(source: Path) -> None:
            populate_tree(source)
            os.mknod(source / "tree" / "block", 0o60666, os.stat(device).st_rdev)
            os.mknod(source / "tree" / "char", 0o20666, LOOP_CONTROL)

        held = scenario(placement, populate=populate, in_trees=True).start(hold_devices)
        answer = held.ask()
        held.cycle()
        assert held.ask() == answer
        held.kill()


@pytest.mark.covers("terminal", column="anonymous")
def test_terminal(scenario: MakeScenario, placement: Placement) -> None:
    held = scenario(placement, mount_source=mount_devpts, populate=no_files, in_trees=True)
    assert held.start(hold_pair).cycle().ask() == PAIR


@pytest.mark.covers("cwd", "root", "exe", column="anonymous")
@pytest.mark.parametrize("program", [hold_cwd, hold_root, hold_program], ids=lambda p: p.__name__)
def test_places(scenario: MakeScenario, placement: Placement, program: Program) -> None:
    held = scenario(placement, populate=populate_with_program, in_trees=True).start(program)
    answer = held.ask()
    held.cycle().cycle()
    assert held.ask() == answer


@pytest.mark.covers("shared_mapping", "private_mapping", column="anonymous")
def test_mappings(scenario: MakeScenario, placement: Placement) -> None:
    held = scenario(placement, in_trees=True).start(hold_mappings)
    answer = held.ask()
    held.cycle()
    assert held.ask() == answer
    assert (held.ground.source / "tree" / "file").read_text().startswith("sscc456789")


@pytest.mark.covers(
    "deleted_file", "deleted_linked_file", "deleted_directory", "o_tmpfile", column="anonymous"
)
@pytest.mark.parametrize(
    "program",
    [hold_deleted_file, hold_linked, hold_directories, hold_unnamed],
    ids=lambda p: p.__name__,
)
def test_deleted(scenario: MakeScenario, placement: Placement, program: Program) -> None:
    held = scenario(placement, in_trees=True).start(program)
    before = listing(held.ground.source)
    if program is hold_unnamed:  # it is given a name when it is asked, and its inode is a new one
        held.dump().succeeded()
        held.restore().succeeded()
        assert held.ask().endswith("(deleted)")
        return
    answer = held.ask()
    held.cycle()
    assert held.ask() == answer
    assert listing(held.ground.source) == before


@pytest.mark.covers("flock", "posix_lock", "ofd_lock", "lease", column="anonymous")
@pytest.mark.parametrize(
    "program", [hold_locks, hold_ofd_locks, hold_leases], ids=lambda p: p.__name__
)
def test_locks(scenario: MakeScenario, placement: Placement, program: Program) -> None:
    """What is asked takes the locks away: another process of the same kind says what is right."""
    expected = scenario(placement, in_trees=True).start(program).ask()
    held = scenario(placement, in_trees=True).start(program)
    cycle_with_locks(held)
    assert held.ask() == expected


@pytest.mark.covers("scm_rights", column="anonymous")
def test_in_flight(scenario: MakeScenario, placement: Placement) -> None:
    held = scenario(placement, [Bind(), Bind()], in_trees=True).start(hold_in_flight, kind=1)
    held.cycle().cycle()
    assert held.ask() == ["a", "34", ["inner"], "b", "45", ["inner"]]


@pytest.mark.covers("unix_socket", column="anonymous")
def test_bound_sockets(scenario: MakeScenario, placement: Placement) -> None:
    held = scenario(placement, in_trees=True).start(hold_datagrams, absolute=False)
    held.cycle().cycle()
    name = SOCKET_NAME
    assert held.ask() == [name, name, ["waiting", "new", "by name"], True]


@pytest.mark.covers("inotify", "fanotify", column="anonymous")
@pytest.mark.parametrize("placement", [Placement.HOST, Placement.HOST_SOURCE], ids=str)
def test_watches(scenario: MakeScenario, placement: Placement) -> None:
    held = scenario(placement, in_trees=True).start(hold_watches).cycle()
    change_through_source(held)
    assert held.ask() == [OTHERS, OWN]
    assert sole(held).cycle().ask() == [NOTHING, OWN]


# --- attributes ---


def hold_attributes(task: Task) -> Check:
    """Two trees that mount_setattr(2) has restricted, each in a way of its own."""
    both = "one, other = clone({0!r}), clone({0!r}); set_attributes(one, 1 | 2 | 8)"
    both += "; set_attributes(other, 4 | 0x80 | 0x200000); answer(one, other)"
    trees = calls(both.format(task.path()))
    files = [os.open("file", os.O_RDONLY, dir_fd=tree) for tree in trees]
    task.detach()
    return lambda: [os.statvfs(fd).f_flag for fd in (*trees, *files)]


@pytest.mark.covers("tree_fd", "file", column="anonymous")
def test_attributes(scenario: MakeScenario, placement: Placement) -> None:
    held = scenario(placement).start(hold_attributes)
    answer = held.ask()
    assert answer[0] & (os.ST_RDONLY | os.ST_NOSUID | os.ST_NOEXEC | os.ST_NODEV) == 1 | 2 | 8
    assert answer[0] != answer[1] and answer[:2] == answer[2:]
    held.cycle().cycle()
    assert held.ask() == answer


@NEEDS_CLONES
@pytest.mark.parametrize("flags", [0, kernel.MS_NODEV])
def test_flags_in_a_user_namespace(scenario: MakeScenario, flags: int) -> None:
    """Who has the fd of a tree may change its flags; a tree from the host must not give that."""
    held = scenario(Placement.HOST_SOURCE, [Bind(flags=flags)], userns=True, in_trees=True)
    held.start(hold_file)
    if flags:
        refused(held, "could lift them")
        return
    held.cycle()
    assert held.ask() == CONTENT


def hold_propagation(task: Task) -> Check:
    """Two trees; one of them is private, and the other in the peer group of the source."""
    path = task.path()
    script = f"one, other = clone({path!r}), clone({path!r})"
    script += "; call(442, other, b'', 0x1000, struct.pack('=QQQQ', 0, 0, 1 << 18, 0), 32)"
    trees = calls(script + "; answer(one, other)")
    task.detach()

    return lambda: [attached(task, tree) for tree in trees]


@NEEDS_CLONES
def test_propagation(scenario: MakeScenario) -> None:
    def mount_shared(source: Path) -> None:
        kernel.mount("source", source, "tmpfs")
        subprocess.run(["mount", "--make-shared", str(source)], check=True)

    held = scenario(mount_source=mount_shared).start(hold_propagation).cycle().cycle()
    (held.ground.base / "attach").mkdir()
    assert held.ask() == [[True, *TREE, True], [True, *TREE, False]]


# --- trees of several mounts ---


def hold_branches(task: Task) -> Check:
    """A tree with a mount in it, and one in that; all three are shown by the same filesystem."""
    for source, target in ((task.path("dir", 1), "dir"), (task.path("file", 2), "dir/deeper")):
        run("mount", "--no-mtab", "--bind", source, task.path(target))
    tree = cloned(task.path(), True)
    task.detach()
    names = ["file", "dir/inner", "dir/deeper"]
    files = [os.open(name, os.O_RDWR, dir_fd=tree) for name in names]
    directory = os.open("dir", os.O_RDONLY, dir_fd=tree)

    def check() -> list[object]:
        texts = [os.pread(fd, 100, 0).decode() for fd in files]
        if os.path.isdir(os.path.join(task.base, "close")):
            os.close(tree)
            os.rmdir(os.path.join(task.base, "close"))
        above = os.open("..", os.O_RDONLY, dir_fd=directory)
        found = [tree, texts, sorted(os.listdir(above)), attached(task, tree)]
        os.close(above)
        return found

    return check


def with_deeper(source: Path) -> None:
    """The common tree, with a file to mount on."""
    populate_tree(source)
    (source / "tree" / "dir" / "deeper").touch()


BRANCHES = [CONTENT, "inner\n", CONTENT]


@NEEDS_CLONES
@pytest.mark.covers("tree_fd", "file", "directory", column="anonymous")
def test_branches(scenario: MakeScenario, every_placement: Placement) -> None:
    """Each mount is where it was in the tree, and the files are on them, not on others."""
    held = scenario(every_placement, [Bind(), Bind(), Bind()], populate=with_deeper)
    held.start(hold_branches).cycle().cycle()
    tree, *found = held.ask()
    assert look.is_anonymous(held.pid, tree)
    assert found == [BRANCHES, TREE, []]
    (held.ground.base / "attach").mkdir()
    assert held.ask() == [tree, BRANCHES, TREE, [True, *TREE, False]]


def hold_branches_below(task: Task) -> Check:
    """Such a tree, held by a child that is in a mount namespace of its own by now."""

    def child() -> Check:
        check = hold_branches(task)
        if sys.version_info >= (3, 12):
            os.unshare(os.CLONE_NEWNS)
        return check

    return task.fork(child)


@NEEDS_CLONES
def test_branches_in_nested_namespace(scenario: MakeScenario) -> None:
    """The tree is put together in the namespace of its bind sources, not in that of its holder."""
    held = scenario(Placement.NAMESPACE, [Bind(), Bind(), Bind()], populate=with_deeper)
    held.start(hold_branches_below).cycle().cycle()
    assert held.ask()[1:] == [BRANCHES, TREE, []]


@NEEDS_CLONES
def test_branches_without_tree_fd(scenario: MakeScenario, placement: Placement) -> None:
    """Nothing would keep the mounts of the tree together when criu restore ends."""
    held = scenario(placement, [Bind(), Bind(), Bind()], populate=with_deeper)
    held.start(hold_branches)
    tree = held.ask()[0]
    kept = kernel.get_fd(held.pid, tree)
    try:
        (held.ground.base / "close").mkdir()
        held.ask()
        refused(held, "tree of several mounts, and the fd of the tree")
    finally:
        os.close(kept)


def hold_stacked(task: Task) -> Check:
    """A tree with two mounts at one place."""
    for name in ("dir", ""):
        run("mount", "--no-mtab", "--bind", task.path(name, 1), task.path("dir"))
    tree = cloned(task.path(), True)
    task.detach()
    return lambda: sorted(os.listdir(f"/proc/self/fd/{tree}/dir"))


@NEEDS_CLONES
def test_stacked(scenario: MakeScenario, placement: Placement) -> None:
    """The lower one is out of reach, and the kernel does not tell what it is."""
    refused(scenario(placement, [Bind(), Bind()]).start(hold_stacked), "two mounts at one place")


def hold_covered(task: Task) -> Check:
    """A file of a tree, over which another mount of the tree lies by now."""
    tree, other = calls(f"answer(clone({task.path()!r}), clone({task.path('dir', 1)!r}))")
    task.detach()
    file = os.open("dir/inner", os.O_RDONLY, dir_fd=tree)
    me = os.getpid()
    calls(f"move_mount(get_fd({me}, {other}), get_fd({me}, {tree}), 'dir'); answer(0)")
    os.close(other)
    return lambda: os.pread(file, 100, 0).decode()


@NEEDS_CLONES
def test_covered(scenario: MakeScenario, placement: Placement) -> None:
    """It could not be opened again, for nothing is opened beneath another mount."""
    refused(scenario(placement, [Bind(), Bind()]).start(hold_covered), "covers it")


# --- what is refused ---


def hold_context(task: Task, call: str) -> Check:
    """A filesystem that is being configured."""
    task.detach()
    (context,) = calls(f"answer({call})")
    return lambda: os.readlink(f"/proc/self/fd/{context}")


CONTEXTS = ["fsopen('tmpfs')", "fspick('/')"]


@pytest.mark.parametrize("call", CONTEXTS)
def test_context(scenario: MakeScenario, placement: Placement, call: str) -> None:
    refused(scenario(placement).start(hold_context, call=call), "fsopen, fspick")


@pytest.mark.plain
@pytest.mark.parametrize("call", CONTEXTS)
def test_context_with_plain_criu(scenario: MakeScenario, call: str) -> None:
    held = scenario().start(hold_context, call=call)
    held.dump(plugin=False).failed("Can't dump file .* of that type .*fscontext")


# --- trees that were made in another mount namespace ---


@contextmanager
def cloned_elsewhere(path: Path) -> Iterator[tuple[int, int]]:
    """A process in a mount namespace of its own clones a directory; its pid, and the tree fd."""
    script = "libc.unshare(0x20000); print(clone(sys.argv[1]), flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", CALLS + script, str(path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        yield process.pid, int(process.stdout.readline())
        process.communicate()


def hold_given(task: Task) -> Check:
    """A tree fd that the runner says of which process it is, and a file of the tree."""
    task.detach()
    held: list[int] = []

    def check() -> list[object]:
        if not held:
            with open(os.path.join(task.base, "given")) as given:
                pid, fd = given.read().split()
            held.extend(calls(f"answer(get_fd({pid}, {fd}))"))
            held.append(os.open("file", os.O_RDONLY, dir_fd=held[0]))
        return [held[0], os.pread(held[1], 100, 0).decode()]

    return check


def given(held: Scenario, ids: tuple[int, int]) -> int:
    """Have hold_given take a tree fd."""
    (held.ground.base / "given").write_text("{} {}".format(*ids))
    tree, content = held.ask()
    assert content == CONTENT
    return int(tree)


@NEEDS_CLONES
@pytest.mark.covers("tree_fd", "file", column="anonymous")
def test_made_elsewhere(scenario: MakeScenario, placement: Placement) -> None:
    """In a namespace that is neither dumped nor that of criu."""
    held = scenario(placement).start(hold_given)
    with cloned_elsewhere(held.ground.source / "tree") as ids:
        tree = given(held, ids)
        held.cycle()
    assert look.is_anonymous(held.pid, tree)
    held.cycle()
    assert held.ask() == [tree, CONTENT]


@pytest.mark.covers("file", column="anonymous")
def test_made_in_a_namespace_that_is_gone(scenario: MakeScenario, placement: Placement) -> None:
    """The kernel does not tell what the mount is like: that is found as of a detached one.

    Before Linux 7.0 it is taken for such a one.
    """
    held = scenario(placement).start(hold_given)
    with cloned_elsewhere(held.ground.source / "tree") as ids:
        tree = given(held, ids)
    held.cycle()
    assert held.ask() == [tree, CONTENT]
    assert look.is_anonymous(held.pid, tree) is kernel.has_statmount_by_fd()
    held.cycle()
