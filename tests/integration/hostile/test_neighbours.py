"""What happens around the dumped tasks changes nothing: see harness/neighbours.py."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ..anonymous.test_anonymous_sole import OPTIONS, hold_new
from ..conftest import MakeScenario
from ..deleted.test_deleted import hold_linked
from ..files.test_watches import hold_watches_alone
from ..filesystems.test_pseudo import hold_file
from ..filesystems.test_pseudo import start as start_pseudo
from ..filesystems.test_tmpfs_refused import hold_deleted, hold_top
from ..harness import kernel, neighbours
from ..harness.agent import Check, Task
from ..harness.criu import criu, default_plugins
from ..harness.program import Program
from ..harness.scenario import Scenario
from ..soleheld import sole

pytestmark = pytest.mark.detached

SOON = 60.0  # seconds: many times what a dump takes, and no time for one that hangs


@pytest.fixture
def all_neighbours(tmp_path: Path) -> Iterator[None]:
    """Neighbours of every kind."""
    with neighbours.all_neighbours(tmp_path / "neighbours"):
        yield


def hold_socket(task: Task) -> Check:
    """A unix socket that is bound there, and the directory."""
    top = os.open(task.path(), os.O_RDONLY)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    os.chdir(task.path())
    bound.bind("bound")
    os.chdir("/")
    task.detach()
    return lambda: [sorted(os.listdir(top)), bound.getsockname()]


def cycle(held: Scenario) -> None:
    """Dump and restore, in time."""
    answer = held.ask()
    run = held.dump().succeeded()
    assert run.seconds < SOON
    assert held.restore().succeeded().seconds < SOON
    assert held.ask() == answer


@pytest.mark.parametrize(
    "program", [hold_deleted, hold_top, hold_socket], ids=lambda program: program.__name__
)
def test_sole_held(scenario: MakeScenario, all_neighbours: None, program: Program) -> None:
    """A filesystem that a process alone holds."""
    cycle(sole(scenario().start(program)))


def test_sole_watched(scenario: MakeScenario, all_neighbours: None) -> None:
    held = sole(scenario().start(hold_watches_alone)).cycle()
    assert held.ask()  # the events of this check


def test_new_filesystem(
    scenario: MakeScenario, anonymous_mounts: None, all_neighbours: None
) -> None:
    """What fsmount gave, and no mount shows."""
    cycle(scenario().start(hold_new, options=OPTIONS, fill=True))


def test_deleted(scenario: MakeScenario, all_neighbours: None) -> None:
    """A deleted file with another link, of a mount whose root is to be found."""
    cycle(scenario().start(hold_linked))


def test_proc(scenario: MakeScenario, all_neighbours: None) -> None:
    """All who have a file of the mount are looked for."""
    cycle(start_pseudo(scenario, "proc", hold_file, name="version"))


@pytest.mark.parametrize("milliseconds", [1, 10, 50, 250])
def test_handed_on(scenario: MakeScenario, tmp_path: Path, milliseconds: int) -> None:
    """A chain of processes has the filesystem too, and never the same one: refused each time."""
    held = scenario().start(hold_deleted)
    answer = held.ask()
    shared = held.ground.source / "shared"
    with neighbours.chain(shared, milliseconds / 1000, tmp_path / "stop"):
        sole(held)
        for _ in range(3):
            held.dump().failed(r"criu-detached: .*process \d+ holds it too")
            assert held.ask() == answer
    cycle(held)


@pytest.mark.parametrize("milliseconds", [5, 50])
def test_passed_on(scenario: MakeScenario, milliseconds: int) -> None:
    """Processes pass a file of it on to each other."""
    held = scenario().start(hold_deleted)
    answer = held.ask()
    file = held.ground.source / "tree" / "file"
    with neighbours.program(neighbours.RING, file, str(milliseconds / 1000)):
        sole(held)
        for _ in range(3):
            held.dump().failed(r"criu-detached: .* holds it too")
            assert held.ask() == answer
    cycle(held)


HOLDERS = {
    "fd": "fd = os.open('file', 0); os.chdir('/')",
    "cwd": "pass",
    "socket": "import socket; s = socket.socket(1); s.bind('socket'); os.chdir('/')",
}


TREE = """
import os, sys
sys.path.insert(0, sys.argv[2])
from tests.integration.harness import kernel
tree = kernel.open_tree(-100, sys.argv[1], kernel.OPEN_TREE_CLONE)
print(flush=True)
input()
"""


def test_tree_that_does_not_answer(
    scenario: MakeScenario, anonymous_mounts: None, tmp_path: Path
) -> None:
    """Another process's, in which the filesystem may be mounted, for all that can be known."""
    held = sole(scenario().start(hold_deleted))
    answer = held.ask()
    point = tmp_path / "served"
    point.mkdir()
    server = neighbours.serve(point, "user_id=0,group_id=0,allow_other,default_permissions")
    with ExitStack() as stack:
        stack.callback(neighbours.unmount, point)
        tree = neighbours.Program(TREE, point, Path(__file__).parents[3])
        stack.callback(tree.end)
        stack.callback(neighbours.end_server, server)
        kernel.umount2(point, kernel.MNT_DETACH)
        held.dump("--leave-running").succeeded()
        os.kill(server, signal.SIGSTOP)
        run = held.dump()
        run.failed(rf"criu-detached: .*process {tree.running.pid} has .* which does not answer")
        assert run.seconds < SOON
        assert held.ask() == answer
    cycle(held)


# A process that is dumped, with a file of the directory that it is given.
DUMPED = """
import os, signal, sys
kept = os.open(sys.argv[1] + "/file", os.O_RDWR)
print(flush=True)
null = os.open("/dev/null", os.O_RDWR)
for fd in range(3):
    os.dup2(null, fd)
os.close(null)
while True:
    signal.pause()
"""
OTHER = "import os, sys; os.chdir(sys.argv[1]); os.setuid(12345); {}; print(flush=True); input()"
PLUGIN: dict[str, Any] = {"plugins": default_plugins()}
WITHOUT = ["setpriv", "--bounding-set", "-sys_ptrace"]


@pytest.mark.parametrize("how", HOLDERS)
def test_without_ptrace(tmp_path: Path, how: str) -> None:
    """Whom criu cannot look at may hold it: refused, and what is missing is named."""
    point = tmp_path / "fs"
    point.mkdir()
    kernel.mount("other", point, "tmpfs")
    (point / "file").write_text("content")
    point.chmod(0o777)
    with ExitStack() as stack:
        dumped = neighbours.Program(DUMPED, point, prefix=WITHOUT)
        stack.callback(dumped.end)
        other = neighbours.Program(OTHER.format(HOLDERS[how]), point)
        stack.callback(other.end)
        kernel.umount2(point, kernel.MNT_DETACH)
        options = ["--tree", str(dumped.running.pid), "--leave-running"]
        run = criu("dump", tmp_path / "images", options, prefix=WITHOUT, **PLUGIN)
        run.failed(r"criu-detached: .*unsure: .*no CAP_SYS_PTRACE")
        run = criu("dump", tmp_path / "images", options, **PLUGIN)
        run.failed(rf"criu-detached: .*process {other.running.pid} holds it too")
        other.end()
        criu("dump", tmp_path / "images", options, **PLUGIN).succeeded()


# A process that has a directory and nothing else of it, in a PID namespace in which criu runs.
INSIDE = """
mount -t proc proc /proc && exec 3<"$1" && umount --lazy "$1" || exit 3
setsid sleep infinity <&3 >/dev/null 2>&1 3<&- &
pid=$!
exec 3<&-
until [ "$(cut -d ' ' -f 6 /proc/$pid/stat)" = $pid ]; do sleep 0.01; done
echo ready
read go
criu dump --tree $pid --images-dir "$2" --log-file log -v4 --leave-running --lib "$3" </dev/null
echo status $?
"""


@pytest.mark.parametrize("where", ["attached", "open"])
def test_in_a_pid_namespace(tmp_path: Path, where: str) -> None:
    """From within criu does not see who else has it: a dump of what is in memory is refused."""
    point, images = tmp_path / "fs", tmp_path / "images"
    point.mkdir()
    images.mkdir()
    kernel.mount("inside", point, "tmpfs")
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", INSIDE, "sh"]
    command += [str(point), str(images), str(default_plugins())]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as running:
        assert running.stdin is not None and running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        held = os.open(point, os.O_RDONLY)
        if where == "open":
            kernel.umount2(point, kernel.MNT_DETACH)
        print("go", file=running.stdin, flush=True)
        said = running.stdout.read()
    os.close(held)
    if where == "attached":
        kernel.umount2(point, kernel.MNT_DETACH)
    log = (images / "log").read_text(errors="replace")
    assert said == "status 1\n", log
    assert "criu runs in a PID namespace" in log, log
