"""What else a process may hold on a filesystem in memory that is its own alone.

The programs are those that show the same where a bind source is left.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from .. import disks
from ..conftest import MakeScenario
from ..deleted.test_deleted import hold_directories, hold_locked, hold_open, hold_unnamed
from ..files import test_devices, test_ext_files, test_fds
from ..files.test_flags import hold_flags, states
from ..files.test_in_flight import hold_each_kind, hold_in_flight
from ..files.test_locks import (
    cycle_with_locks,
    hold_broken_lease,
    hold_leases,
    hold_locks,
    hold_ofd_locks,
)
from ..files.test_watches import NOTHING, OWN, hold_watches
from ..harness import look
from ..harness.agent import Check, Task
from ..harness.placement import CONTENT, SINGLE_FILE, SUBDIRECTORY, Bind, Placement, populate_tree
from ..harness.program import Program
from ..harness.programs import hold_position
from ..soleheld import PLACES, sole
from ..tasks import test_processes
from ..tasks.test_programs import (
    image_of,
    populate_with_python,
    program_of,
    start_python,
)
from ..tasks.test_signals import hold_owned

pytestmark = pytest.mark.detached

COLUMN = "sole-held"


@pytest.mark.covers(
    "file", "directory", "o_path", "o_path_symlink", "fifo", "character_device", column=COLUMN
)
@pytest.mark.parametrize("bind", [Bind(), Bind(SUBDIRECTORY)], ids=["directory", "subdirectory"])
@PLACES
def test_each_kind(scenario: MakeScenario, placement: Placement, bind: Bind) -> None:
    held = sole(scenario(placement, [bind]).start(test_fds.hold_each_kind))
    held.cycle()
    assert held.ask() == test_fds.EACH_KIND
    held.cycle()
    assert held.ask() == test_fds.EACH_KIND


@pytest.mark.covers("file", column=COLUMN)
@PLACES
def test_single_file(scenario: MakeScenario, placement: Placement) -> None:
    """The root of its mount is no directory."""
    held = sole(scenario(placement, [Bind(SINGLE_FILE)]).start(hold_position)).cycle()
    fd, rest = held.ask()
    held.assert_detached([fd])
    assert rest == CONTENT[10:]


@pytest.mark.covers("o_path", "o_nofollow", "o_append", "o_direct", "fowner", column=COLUMN)
@PLACES
def test_flags(scenario: MakeScenario, placement: Placement) -> None:
    held = sole(scenario(placement).start(hold_flags))
    before = states(held.pid)
    held.cycle()
    assert states(held.pid) == before
    assert held.ask()["owner"] == 0


@pytest.mark.covers("deleted_directory", "cwd", column=COLUMN)
@PLACES
def test_deleted_directories(scenario: MakeScenario, placement: Placement) -> None:
    held = sole(scenario(placement).start(hold_directories))
    expected = held.ask()
    for _ in range(2):
        held.cycle()
        assert held.ask() == expected


@pytest.mark.covers("deleted_directory", column=COLUMN)
@PLACES
def test_deleted_root(scenario: MakeScenario, placement: Placement) -> None:
    """The directory that was bound is deleted with all that was in it."""
    held = scenario(placement, [Bind(SUBDIRECTORY)]).start(hold_open, names=["", "dir/inner"])
    tree = Path(f"/proc/{held.pid}/fd/3")
    for path in sorted(tree.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    root = tree.parent.parent / "root" / str(held.ground.seen_base).lstrip("/")
    source = root / "source" if placement.value.startswith("namespace") else held.ground.source
    (source / "tree").rmdir()
    sole(held).cycle()
    assert held.ask() == [0, 0]


@pytest.mark.covers("o_tmpfile", column=COLUMN)
@PLACES
def test_unnamed(scenario: MakeScenario, placement: Placement) -> None:
    """What was made with O_TMPFILE can still be given a name."""
    held = sole(scenario(placement).start(hold_unnamed))
    held.dump().succeeded()
    held.restore().succeeded()
    held.ask()


LOCKS = {
    hold_locks: [[True, True], [False, False]],
    hold_ofd_locks: [
        [fcntl.F_RDLCK, fcntl.F_UNLCK, fcntl.F_UNLCK, fcntl.F_WRLCK],
        [fcntl.F_RDLCK, fcntl.F_UNLCK, fcntl.F_UNLCK, fcntl.F_UNLCK],
        [fcntl.F_UNLCK] * 4,
    ],
    hold_leases: [[kind, False, True, True] for kind in (fcntl.F_RDLCK, fcntl.F_WRLCK)],
    hold_broken_lease: [fcntl.F_UNLCK, False, True],
}


@pytest.mark.covers("flock", "posix_lock", "ofd_lock", "lease", column=COLUMN)
@pytest.mark.parametrize("program", LOCKS, ids=lambda program: program.__name__)
@PLACES
def test_locks(scenario: MakeScenario, placement: Placement, program: Program) -> None:
    held = sole(scenario(placement).start(program))
    cycle_with_locks(held)
    assert held.ask() == LOCKS[program]


@pytest.mark.covers("flock", column=COLUMN)
def test_lock_of_a_deleted_file(scenario: MakeScenario) -> None:
    held = sole(scenario().start(hold_locked))
    held.dump("--file-locks").succeeded()
    held.restore("--file-locks").succeeded()
    assert held.ask() is True


@pytest.mark.covers("scm_rights", column=COLUMN)
@PLACES
def test_in_flight(scenario: MakeScenario, placement: Placement) -> None:
    """Nothing but sockets leads to the filesystem, and to two mounts of it."""
    held = scenario(placement, [Bind(), Bind()]).start(hold_in_flight, kind=1)
    sole(held).cycle()
    held.cycle()
    assert held.ask() == ["a", "34", ["inner"], "b", "45", ["inner"]]


@pytest.mark.covers("scm_rights", column=COLUMN)
def test_each_kind_in_flight(scenario: MakeScenario) -> None:
    held = sole(scenario().start(hold_each_kind)).cycle()
    assert held.ask() == [len(CONTENT), "file", "waiting", "\0" * 8, "other\n"]


@pytest.mark.covers("fowner", column=COLUMN)
@PLACES
def test_owners(scenario: MakeScenario, placement: Placement) -> None:
    held = sole(scenario(placement).start(hold_owned, armed=False)).cycle()
    assert held.ask() == {"owners": [True] * 3, "signals": [True] * 3, "told": True}


@pytest.mark.covers("exe", "root", "cwd", "private_mapping", column=COLUMN)
@PLACES
def test_program(scenario: MakeScenario, placement: Placement) -> None:
    """An interpreter with its modules and libraries, chrooted into the filesystem."""
    held = start_python(scenario(placement, populate=populate_with_python))
    before = image_of(program_of(held))
    sole(held).cycle()
    assert image_of(program_of(held)) == before
    assert "/json/__init__.py" in held.ask()
    held.cycle()
    assert "/textwrap.py" in held.ask()


@pytest.mark.covers("file", "cwd", column=COLUMN)
@PLACES
def test_family(scenario: MakeScenario, placement: Placement) -> None:
    """Several processes hold parts of it."""
    held = sole(scenario(placement).start(test_processes.hold_family))
    before = held.ask()
    held.dump().succeeded()
    held.restore().succeeded()
    assert held.ask() == before


@pytest.mark.covers("block_device", "character_device", column=COLUMN)
@pytest.mark.parametrize("placement", [Placement.HOST, Placement.HOST_SOURCE], ids=str)
def test_block_device(scenario: MakeScenario, placement: Placement, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"0123456789".ljust(4096, b"."))
    with disks.loop_device(image) as device:
        number = os.stat(device).st_rdev

        def populate(source: Path) -> None:
            populate_tree(source)
            os.mknod(source / "tree" / "block", 0o60666, number)
            os.mknod(source / "tree" / "char", 0o20666, test_ext_files.LOOP_CONTROL)

        held = scenario(placement, populate=populate).start(test_ext_files.hold_devices)
        assert held.ask() == [3, "345", True, True]
        sole(held).cycle()
        assert held.ask() == [3, "345", True, True]


@pytest.mark.covers("character_device", column=COLUMN)
@PLACES
def test_memory_devices(scenario: MakeScenario, placement: Placement) -> None:
    held = scenario(placement, populate=test_devices.populate_devices)
    before = held.start(test_devices.hold_devices).ask()
    sole(held).cycle()
    assert held.ask() == before


@pytest.mark.covers("inotify", "fanotify", column=COLUMN)
@PLACES
def test_watches(scenario: MakeScenario, placement: Placement) -> None:
    held = sole(scenario(placement).start(hold_watches))
    for _ in range(2):
        assert held.cycle().ask() == [NOTHING, OWN]


def hold_parts(task: Task, processes: int) -> Check:
    """Each of several processes has a file of its own, open and mapped, and deletes another."""

    def child(number: int) -> Any:
        def hold() -> Check:
            file = os.open(task.path(f"file {number}"), os.O_RDWR | os.O_CREAT)
            os.write(file, b"%d" % number)
            lost = os.open(task.path(f"lost {number}"), os.O_RDWR | os.O_CREAT)
            os.write(lost, b"-%d" % number)
            os.unlink(task.path(f"lost {number}"))
            return lambda: (os.pread(file, 9, 0) + os.pread(lost, 9, 0)).decode()

        return hold

    children = [task.fork(child(number)) for number in range(processes)]
    task.detach()
    return lambda: [ask() for ask in children]


def test_many_processes(scenario: MakeScenario) -> None:
    """Through files alone: the directory that they are in is not to be seen by anyone."""
    held = sole(scenario().start(hold_parts, processes=30)).cycle()
    assert held.ask() == [f"{number}-{number}" for number in range(30)]
    assert len({file.mnt_id for pid in look.tree(held.pid)[1:] for file in files_of(pid)}) == 1


def files_of(pid: int) -> list[look.OpenFile]:
    """What a process has on detached mounts."""
    return [
        file
        for fd, file in look.open_files(pid).items()
        if file.link.startswith("/") and look.is_detached(pid, fd)
    ]
