"""What cannot be restored faithfully is refused at dump: one clear line, and the task lives on."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

from ..conftest import MakeScenario
from ..harness import kernel, look
from ..harness.agent import Check, Task
from ..harness.placement import CONTENT, SUBDIRECTORY, Bind, Placement
from ..harness.programs import hold_file
from ..harness.scenario import Scenario

pytestmark = pytest.mark.detached


def hold_socket(task: Task, name: str = "socket", start: str = "") -> Check:
    """A unix socket, bound to a name from a directory."""
    server = socket.socket(socket.AF_UNIX)
    os.chdir(task.path(start))
    server.bind(name)
    os.chdir("/")
    task.detach()
    return lambda: server.getsockname()


def refused(held: Scenario, *patterns: str) -> None:
    """The dump fails with a single line of the plugin's, and the process goes on."""
    before, answer = look.seen(held.pid), held.ask()
    run = held.dump()
    for pattern in patterns:
        run.failed(f"criu-detached: .*{pattern}")
    ours = [line for line in run.errors() if "criu-detached" in line]
    assert len(ours) == 1, run.report()
    assert look.is_running(held.pid)
    assert look.seen(held.pid) == before
    assert held.ask() == answer


def test_source_shows_less(scenario: MakeScenario) -> None:
    """The filesystem is attached still, but only a directory of it that lacks the file."""
    held = scenario()
    held.start(hold_file)
    part = held.work / "part"
    part.mkdir()
    kernel.bind(held.ground.source / "tree" / "dir", part)
    try:
        kernel.umount2(held.ground.source, kernel.MNT_DETACH)
        refused(held, "file")
    finally:
        kernel.umount2(part)


def test_socket_beside_its_directory(scenario: MakeScenario, placement: Placement) -> None:
    """CRIU does not dump such a name on an attached mount either."""
    name = {"name": "../socket", "start": "dir"}
    refused(scenario(placement).start(hold_socket, **name), r"socket.*\.\.")
    held = scenario(placement, attached=True).start(hold_socket, **name)
    held.dump(plugin=False).failed(r"unix: Unable too cut \.\./socket")


def hold_renamed_socket(task: Task) -> Check:
    """A unix socket bound to a relative name, whose file has another name by now."""
    server = socket.socket(socket.AF_UNIX)
    os.chdir(task.path())
    server.bind("socket")
    os.rename("socket", "renamed")
    os.chdir("/")
    task.detach()
    return lambda: server.getsockname()


def test_renamed_socket(scenario: MakeScenario, placement: Placement) -> None:
    """CRIU does not dump it on an attached mount either."""
    refused(scenario(placement).start(hold_renamed_socket), "bound as socket and is.*renamed")
    held = scenario(placement, attached=True).start(hold_renamed_socket)
    held.dump(plugin=False).failed("unix: Unable too cut socket")


def hold_socket_in_deleted_directory(task: Task) -> Check:
    """A unix socket whose name is gone, with the directory that it was in."""
    server = socket.socket(socket.AF_UNIX)
    os.mkdir(task.path("gone"))
    server.bind(task.path("gone/socket"))
    os.unlink(task.path("gone/socket"))
    os.rmdir(task.path("gone"))
    task.detach()
    return lambda: server.getsockname()


def test_socket_in_deleted_directory(scenario: MakeScenario, placement: Placement) -> None:
    held = scenario(placement).start(hold_socket_in_deleted_directory)
    refused(held, "does not show its directory tree/gone: No such file")


def hold_linked_socket(task: Task, unlinked: bool) -> Check:
    """A unix socket whose file has a second name, or only that one."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(task.path("socket"))
    os.link(task.path("socket"), task.path("second"))
    if unlinked:
        os.unlink(task.path("socket"))
    here = os.open(task.path(), os.O_RDONLY)
    task.detach()
    return lambda: [server.getsockname(), os.fstat(here).st_ino]


@pytest.mark.parametrize("unlinked", [False, True], ids=["two", "other"])
def test_linked_socket(scenario: MakeScenario, placement: Placement, unlinked: bool) -> None:
    """A restored socket has a new file, and the other name would stay with the old one."""
    held = scenario(placement).start(hold_linked_socket, unlinked=unlinked)
    refused(held, "socket.*another name")


def hold_sockets_of_one_name(task: Task) -> Check:
    """A second socket where the first one was before its mount was detached."""
    servers = [socket.socket(socket.AF_UNIX) for _ in range(2)]
    servers[0].bind(task.path("socket"))
    task.detach()
    os.makedirs(task.path())
    servers[1].bind(task.path("socket"))
    return lambda: [server.getsockname() for server in servers]


def test_sockets_of_one_name(scenario: MakeScenario, placement: Placement) -> None:
    refused(scenario(placement).start(hold_sockets_of_one_name), "socket.*mixed up")


def hold_read_only_socket(task: Task) -> Check:
    """A unix socket on a mount that became read-only."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(task.path("socket"))
    remount = ["mount", "--no-mtab", "-o", "remount,bind,ro", task.points[0]]
    os.waitpid(os.posix_spawnp("mount", remount, os.environ), 0)
    task.detach()
    return lambda: server.getsockname()


def test_read_only_socket(scenario: MakeScenario, placement: Placement) -> None:
    """There is no way to make its file."""
    refused(scenario(placement).start(hold_read_only_socket), "socket.*read-only")


def hold_socket_file(task: Task) -> Check:
    """The file of a socket, held without a socket."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(task.path("socket"))
    server.close()
    fd = os.open(task.path("socket"), os.O_PATH)
    task.detach()
    return lambda: os.fstat(fd).st_mode


@pytest.mark.parametrize("attached", [True, False], ids=["attached", "detached"])
def test_socket_file(scenario: MakeScenario, placement: Placement, attached: bool) -> None:
    """CRIU takes such an fd for a socket, and fails, on any mount."""
    held = scenario(placement, attached=attached).start(hold_socket_file)
    held.dump().failed("sockets: ")
    assert look.is_running(held.pid)


def test_hidden_in_source(scenario: MakeScenario) -> None:
    """A mount on the source hides the way to the file there, and there is no other way."""
    held = scenario(binds=[Bind(SUBDIRECTORY)]).start(hold_file)
    hidden = held.ground.source / "tree"
    kernel.mount("cover", hidden, "tmpfs")
    try:
        assert list(hidden.iterdir()) == []
        held.survive()  # cloning a source without what is mounted on it gets there
    finally:
        kernel.umount2(hidden)


def test_left_running(scenario: MakeScenario) -> None:
    """A dump that leaves the process running changes nothing in it."""
    held = scenario().start(hold_file)
    before = look.seen(held.pid)
    held.dump("--leave-running").succeeded()
    assert look.seen(held.pid) == before
    assert held.ask() == CONTENT
    assert Path(held.images / "criu-detached.img").exists()


def test_unbindable_source(scenario: MakeScenario) -> None:
    """A source that cannot be cloned is found out while the process lives."""
    held = scenario().start(hold_file)
    subprocess.run(["mount", "--make-unbindable", str(held.ground.source)], check=True)
    refused(held, "would not do for the restore")


def test_unprivileged(scenario: MakeScenario) -> None:
    """Only CAP_SYS_ADMIN may clone a mount."""
    held = scenario().start(hold_file)
    prefix = ["setpriv", "--bounding-set", "-sys_admin"]
    held.dump("--unprivileged", prefix=prefix).failed("would not do .*CAP_SYS_ADMIN")
    assert held.ask() == CONTENT


def hold_own_status(task: Task) -> Check:
    """What a procfs shows of the process itself."""
    fd = os.open(f"{task.points[0]}/self/status", os.O_RDONLY)
    task.detach()
    return lambda: os.pread(fd, 5, 0).decode()


def test_process_in_procfs(scenario: MakeScenario) -> None:
    """The restored process is another one, with other inodes in procfs."""

    def mount_proc(source: Path) -> None:
        kernel.mount("proc", source, "proc")

    held = scenario(mount_source=mount_proc, populate=lambda source: None).start(hold_own_status)
    refused(held, "process in procfs")


def hold_bound(task: Task, path: str) -> Check:
    """A file that is bind-mounted by itself."""
    fd = os.open(path, os.O_RDONLY)
    task.points.append(path)
    task.detach()
    return lambda: os.readlink(f"/proc/self/fd/{fd}")


def bound(held: Scenario, path: str) -> str:
    """Bind-mount a file in the base directory, which the process sees."""
    point = held.ground.base / "bound"
    point.touch()
    kernel.bind(Path(path), point)
    return str(point)


def test_ended_process_in_procfs(scenario: MakeScenario) -> None:
    """It is looked for in all of procfs, where even root may not read everything."""
    held = scenario()
    process = subprocess.Popen(["sleep", "1000"])
    try:
        path = bound(held, f"/proc/{process.pid}/status")
    finally:
        process.kill()
        process.wait()
    refused(held.start(hold_bound, path=path), "no attached mount shows")


def test_namespace(scenario: MakeScenario) -> None:
    """As ``ip netns delete`` leaves it to those who have it open; one more mount of it is there."""
    held = scenario()
    path = bound(held, "/proc/self/ns/uts")
    held.start(hold_bound, path=path)
    kept = bound(held, "/proc/self/ns/uts")
    try:
        refused(held, "a namespace that was bind-mounted.*close it")
    finally:
        kernel.umount2(Path(kept))


def test_namespace_attached(scenario: MakeScenario) -> None:
    """CRIU finds out at restore, too late."""
    held = scenario(attached=True)
    path = bound(held, "/proc/self/ns/uts")
    try:
        held.start(hold_bound, path=path)
        held.dump(plugin=False).succeeded()
        held.restore(plugin=False).failed("Illegal seek")
        held.assert_gone()
    finally:
        kernel.umount2(Path(path))
