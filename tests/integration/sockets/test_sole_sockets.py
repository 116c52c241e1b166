"""Unix sockets whose names are on filesystems that are mounted nowhere any more."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from .. import disks
from ..conftest import MakeScenario
from ..filesystems.test_remount import populate
from ..filesystems.test_tmpfs_refused import mount_ramfs
from ..harness import kernel
from ..harness.agent import Check, Task
from ..harness.placement import Placement
from ..harness.scenario import Scenario
from ..soleheld import sole
from .test_bound_sockets import (
    MODE,
    OWNER,
    SOCKET_NAME,
    hold_alike,
    hold_datagrams,
    hold_in_chroot,
    hold_server,
    hold_unlinked,
)

pytestmark = pytest.mark.detached

RESTORED = pytest.mark.covers("unix_socket", column="sole-held")

SOLE = pytest.mark.parametrize("placement", [Placement.HOST, Placement.NAMESPACE_TMPFS], ids=str)
ABSOLUTE = pytest.mark.parametrize("absolute", [True, False], ids=["absolute", "relative"])


def name_of(held: Scenario, absolute: bool) -> str:
    """What getsockname says."""
    return f"{held.ground.points()[0]}/tree/{SOCKET_NAME}" if absolute else SOCKET_NAME


def serves_twice(held: Scenario, absolute: bool) -> None:
    """What hold_server answers before and after each of two restores."""
    talk = ["question", "sent before", "sent after", "back"]
    for _ in range(2):
        held.cycle()
        assert held.ask() == [name_of(held, absolute), [MODE, *OWNER], True, talk]


@RESTORED
@SOLE
@pytest.mark.parametrize(
    ("kind", "absolute"),
    [(socket.SOCK_STREAM, True), (socket.SOCK_STREAM, False), (socket.SOCK_SEQPACKET, True)],
    ids=["stream", "relative", "seqpacket"],
)
def test_listening(scenario: MakeScenario, placement: Placement, kind: int, absolute: bool) -> None:
    """Connected, accepted and waiting ones as well; mode and owner of the file are kept."""
    held = sole(scenario(placement).start(hold_server, kind=kind, absolute=absolute))
    serves_twice(held, absolute)


@RESTORED
@SOLE
@ABSOLUTE
def test_datagrams(scenario: MakeScenario, placement: Placement, absolute: bool) -> None:
    held = sole(scenario(placement).start(hold_datagrams, absolute=absolute)).cycle()
    name = name_of(held, absolute)
    assert held.ask() == [name, name, ["waiting", "new", "by name"], True]


@RESTORED
@SOLE
@ABSOLUTE
@pytest.mark.parametrize("replaced", [False, True], ids=["gone", "replaced"])
def test_unlinked(
    scenario: MakeScenario, placement: Placement, absolute: bool, replaced: bool
) -> None:
    held = sole(
        scenario(placement).start(hold_unlinked, absolute=absolute, replaced=replaced)
    ).cycle()
    names = ["inner", "socket"] if replaced else ["inner"]
    assert held.ask() == [name_of(held, absolute), [MODE, True], "question", names]


@RESTORED
def test_alike(scenario: MakeScenario) -> None:
    """Relative names in two directories, and one on an attached mount."""
    held = sole(scenario().start(hold_alike)).cycle()
    assert held.ask() == [["socket", "one"], ["socket", "attached"], ["socket", "two"]]


@RESTORED
@pytest.mark.parametrize("unlinked", [False, True], ids=["there", "unlinked"])
def test_name_in_root(scenario: MakeScenario, unlinked: bool) -> None:
    """A child's root is the filesystem."""
    held = sole(scenario().start(hold_in_chroot, unlinked=unlinked)).cycle()
    assert held.ask() == ["/socket", "in the root", [] if unlinked else ["socket"]]


def hold_nothing_else(task: Task, absolute: bool, gone: bool) -> Check:
    """Two sockets that talk; no directory is held, and theirs may be deleted."""
    os.mkdir(task.path("own"))
    os.chmod(task.path("own"), 0o700)
    pair = []
    for name in ("one", "other"):
        end = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        if not absolute:
            os.chdir(task.path())
        end.bind(task.path(f"own/{name}") if absolute else f"own/{name}")
        os.chdir("/")
        pair.append(end)
    pair[0].connect(task.path("own/other"))
    if gone:
        for name in ("one", "other"):
            os.unlink(task.path(f"own/{name}"))
        os.rmdir(task.path("own"))
    task.detach()

    def check() -> Any:
        pair[0].send(b"message")
        message, sender = pair[1].recvfrom(100)
        assert sender == pair[0].getsockname()
        return [message.decode(), *(end.getsockname() for end in pair)]

    return check


@RESTORED
@pytest.mark.parametrize("gone", [False, True], ids=["there", "directory deleted"])
@ABSOLUTE
def test_nothing_else(scenario: MakeScenario, absolute: bool, gone: bool) -> None:
    """Sockets alone keep the filesystem alive, and their names come back with it."""
    held = sole(scenario().start(hold_nothing_else, absolute=absolute, gone=gone))
    expected = held.ask()
    for _ in range(2):
        held.cycle()
        assert held.ask() == expected


def hold_left_over(task: Task) -> Check:
    """Files of sockets that are closed, one with two names, and a directory above them."""
    for name in ("dead", "dir/dead"):
        server = socket.socket(socket.AF_UNIX)
        server.bind(task.path(name))
        os.chmod(task.path(name), 0o640)
        os.chown(task.path(name), 1000, 1001)
        os.setxattr(task.path(name), "trusted.name", name.encode())
        server.close()
        os.utime(task.path(name), ns=(1_000_000_001, 2_000_000_002))
    os.link(task.path("dead"), task.path("dir/second"))
    top = os.open(task.path(), os.O_RDONLY)
    task.detach()

    def check() -> Any:
        answers = []
        for name in ("dead", "dir/dead", "dir/second"):
            facts = os.stat(name, dir_fd=top)
            path = f"/proc/self/fd/{top}/{name}"
            with socket.socket(socket.AF_UNIX) as client:
                error = client.connect_ex(path)
            answers.append(
                [
                    *(oct(facts.st_mode), facts.st_uid, facts.st_gid, facts.st_nlink),
                    *(facts.st_mtime_ns, os.getxattr(path, "trusted.name").decode(), error),
                ]
            )
        return answers

    return check


@RESTORED
@SOLE
def test_left_over(scenario: MakeScenario, placement: Placement) -> None:
    """The file of a socket that nobody has any more is still one."""
    held = scenario(placement).start(hold_left_over)
    expected = held.ask()
    assert expected[0][:2] == ["0o140640", 1000]
    sole(held).cycle().cycle()
    assert held.ask() == expected


def hold_dressed(task: Task) -> Check:
    """Sockets, one without a name, with attributes and times, as their directories have."""
    top = os.open(task.path(), os.O_RDONLY)
    servers = [socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(3)]
    os.chdir(task.path())
    servers[0].bind("dir/relative")
    servers[1].bind(task.path("absolute"))
    servers[2].bind("dir/gone")
    os.unlink("dir/gone")
    os.chdir("/")
    names = ["absolute", "dir/relative", "dir", "."]
    for number, name in enumerate(names):
        os.setxattr(task.path(name), "trusted.name", name.encode())
        os.utime(task.path(name), ns=(number, 1_000_000_000 * number + 1))
    task.detach()

    def check() -> Any:
        found = []
        for name in names:
            path = f"/proc/self/fd/{top}/{name}"
            facts = os.stat(path)
            found.append([facts.st_mtime_ns, os.getxattr(path, "trusted.name").decode()])
        return found

    return check


@RESTORED
@SOLE
def test_times(scenario: MakeScenario, placement: Placement) -> None:
    """The files are others, but on a filesystem that is made anew nobody can tell."""
    held = sole(scenario(placement).start(hold_dressed))
    expected = held.ask()
    held.cycle().cycle()
    assert held.ask() == expected


def hold_in_deleted_directory(task: Task, ahead: bool) -> Check:
    """A socket in a directory that is deleted by now, and another directory."""
    held = [os.open(task.path(), os.O_RDONLY)] if ahead else []
    server = socket.socket(socket.AF_UNIX)
    os.mkdir(task.path("gone"))
    server.bind(task.path("gone/socket"))
    held = held or [os.open(task.path(), os.O_RDONLY)]
    os.unlink(task.path("gone/socket"))
    os.rmdir(task.path("gone"))
    task.detach()
    return lambda: [server.getsockname(), len(held)]


@pytest.mark.parametrize("ahead", [True, False], ids=["socket last", "socket first"])
def test_deleted_directory(scenario: MakeScenario, ahead: bool) -> None:
    """Where its tasks see that there is no such directory, there cannot be one."""
    held = sole(scenario().start(hold_in_deleted_directory, ahead=ahead))
    answer = held.ask()
    held.dump().failed("criu-detached: .*socket is bound in the directory tree/gone")
    assert held.ask() == answer


def remount_read_only(source: Path) -> None:
    """Make a filesystem read-only."""
    kernel.mount("source", source, "tmpfs", kernel.MS_REMOUNT | kernel.MS_RDONLY)


def test_read_only(scenario: MakeScenario) -> None:
    held = scenario().start(hold_nothing_else, absolute=True, gone=False)
    answer = held.ask()
    remount_read_only(held.ground.source)
    sole(held).dump().failed("criu-detached: .*is read-only by now")
    assert held.ask() == answer


@RESTORED
def test_ramfs(scenario: MakeScenario) -> None:
    held = sole(
        scenario(mount_source=mount_ramfs).start(
            hold_server, kind=socket.SOCK_STREAM, absolute=False
        )
    )
    serves_twice(held, absolute=False)


@RESTORED
@ABSOLUTE
def test_disk(scenario: MakeScenario, tmp_path: Path, absolute: bool) -> None:
    """What is on the device is the file of the restored socket."""
    with disks.disk(tmp_path, "ext4") as disk:

        def fill(source: Path) -> None:
            populate(source)
            (source / "tree" / "dir" / "inner").touch()

        held = scenario(mount_source=disk.mount, populate=fill)
        sole(held.start(hold_server, kind=socket.SOCK_STREAM, absolute=absolute))
        serves_twice(held, absolute)
        held.dump().succeeded()
        held.restore().succeeded()
        held.kill()
        disk.mount(held.ground.source)
        assert sorted(path.name for path in (held.ground.source / "tree/dir").iterdir()) == [
            "inner",
            "socket",
        ]
        kernel.umount2(held.ground.source)
