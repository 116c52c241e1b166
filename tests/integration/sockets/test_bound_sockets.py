"""Unix sockets whose names are on a detached mount: restored, with their names leading there."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import sys
from typing import Any

import pytest

from ..conftest import MakeScenario
from ..harness.agent import Check, Task
from ..harness.placement import Placement
from ..harness.scenario import Held

pytestmark = pytest.mark.covers("unix_socket")

SOCKET_NAME = "dir/socket"  # in the tree of every scenario
MODE, OWNER = 0o660, [1000, 1001]
SIOCUNIXFILE = 0x89E0  # an O_PATH fd of the file that a socket is bound to


def bound(task: Task, kind: int, absolute: bool, name: str) -> socket.socket:
    """A socket bound on the mount by its whole path, or from a directory on the mount."""
    server = socket.socket(socket.AF_UNIX, kind)
    if absolute:
        server.bind(task.path(name))
    else:
        os.chdir(task.path())
        server.bind(name)
        os.chdir("/")
    return server


def file_of(server: socket.socket) -> tuple[list[int], int]:
    """Mode and owner of the file that a socket is bound to, and the mount that it is on."""
    fd = fcntl.ioctl(server.fileno(), SIOCUNIXFILE)
    facts = os.fstat(fd)
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as lines:
        mount = next(line for line in lines if line.startswith("mnt_id"))
    os.close(fd)
    return [stat.S_IMODE(facts.st_mode), facts.st_uid, facts.st_gid], int(mount.split()[1])


def mount_of(fd: int) -> int:
    """The mount that an fd is on."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as lines:
        return int(next(line for line in lines if line.startswith("mnt_id")).split()[1])


def hold_server(task: Task, kind: int, absolute: bool) -> Check:
    """A listening socket, a connection that it has accepted, and one that it has not yet."""
    server = bound(task, kind, absolute, SOCKET_NAME)
    os.chmod(task.path(SOCKET_NAME), MODE)
    os.chown(task.path(SOCKET_NAME), *OWNER)
    server.listen()
    clients = [socket.socket(socket.AF_UNIX, kind) for _ in range(2)]
    clients[0].connect(task.path(SOCKET_NAME))
    accepted, _ = server.accept()
    clients[0].send(b"sent before")
    clients[1].connect(task.path(SOCKET_NAME))
    here = os.open(task.path(), os.O_RDONLY)
    pending = [clients[1]]  # to be accepted by the first answer
    task.detach()

    def check() -> Any:
        answers = []
        if not pending:  # the second answer: clients that came after the restore
            late = socket.socket(socket.AF_UNIX, kind)
            late.connect(f"/proc/self/fd/{here}/{SOCKET_NAME}")
            pending.append(late)
        while pending:
            client = pending.pop()
            connection, _ = server.accept()
            client.send(b"question")
            answers.append(connection.recv(100).decode())
            connection.close()
            client.close()
        facts, mount = file_of(server)
        clients[0].send(b"sent after")
        answers += [accepted.recv(11).decode(), accepted.recv(10).decode()]
        accepted.send(b"back")
        answers.append(clients[0].recv(100).decode())
        clients[0].send(b"sent before")
        return [server.getsockname(), facts, mount == mount_of(here), answers]

    return check


@pytest.mark.parametrize("absolute", [True, False], ids=["absolute", "relative"])
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET], ids=str)
def test_listening(scenario: MakeScenario, placement: Placement, kind: int, absolute: bool) -> None:
    held = scenario(placement).start(hold_server, kind=kind, absolute=absolute)
    held.cycle()
    name = f"{held.ground.points()[0]}/tree/{SOCKET_NAME}" if absolute else SOCKET_NAME
    talk = ["question", "sent before", "sent after", "back"]
    for _ in range(2):
        assert held.ask() == [name, [MODE, *OWNER], True, talk]
    held.cycle()
    assert held.ask() == [name, [MODE, *OWNER], True, talk]


def hold_datagrams(task: Task, absolute: bool) -> Check:
    """A datagram socket with a message waiting, and another that is connected to its name."""
    server = bound(task, socket.SOCK_DGRAM, absolute, SOCKET_NAME)
    client = bound(task, socket.SOCK_DGRAM, absolute, "dir/client")
    client.connect(task.path(SOCKET_NAME))
    client.send(b"waiting")
    here = os.open(task.path(), os.O_RDONLY)
    task.detach()

    def check() -> Any:
        client.send(b"new")
        stranger = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        stranger.sendto(b"by name", f"/proc/self/fd/{here}/{SOCKET_NAME}")
        messages = [server.recv(100).decode() for _ in range(3)]
        client.send(b"waiting")
        mounts = {file_of(one)[1] for one in (server, client)}
        return [server.getsockname(), client.getpeername(), messages, mounts == {mount_of(here)}]

    return check


@pytest.mark.parametrize("absolute", [True, False], ids=["absolute", "relative"])
def test_datagrams(scenario: MakeScenario, every_placement: Placement, absolute: bool) -> None:
    held = scenario(every_placement).start(hold_datagrams, absolute=absolute)
    held.cycle()
    name = f"{held.ground.points()[0]}/tree/{SOCKET_NAME}" if absolute else SOCKET_NAME
    assert held.ask() == [name, name, ["waiting", "new", "by name"], True]


def hold_unlinked(task: Task, absolute: bool, replaced: bool) -> Check:
    """A listening socket whose name is gone, or leads to something else; a client waits there."""
    server = bound(task, socket.SOCK_STREAM, absolute, SOCKET_NAME)
    os.chmod(task.path(SOCKET_NAME), MODE)
    server.listen()
    client = socket.socket(socket.AF_UNIX)
    client.connect(task.path(SOCKET_NAME))
    os.unlink(task.path(SOCKET_NAME))
    if replaced:
        with open(task.path(SOCKET_NAME), "w", encoding="ascii") as stream:
            stream.write("in its place")
    here = os.open(task.path(), os.O_RDONLY)
    task.detach()

    def check() -> Any:
        connection, _ = server.accept()
        client.send(b"question")
        (mode, *_), mount = file_of(server)
        directory = os.open("dir", os.O_RDONLY, dir_fd=here)
        names = sorted(os.listdir(directory))
        os.close(directory)
        return [
            server.getsockname(),
            [mode, mount == mount_of(here)],
            connection.recv(100).decode(),
            names,
        ]

    return check


@pytest.mark.parametrize("replaced", [False, True], ids=["gone", "replaced"])
@pytest.mark.parametrize("absolute", [True, False], ids=["absolute", "relative"])
def test_unlinked(
    scenario: MakeScenario, placement: Placement, absolute: bool, replaced: bool
) -> None:
    held = scenario(placement).start(hold_unlinked, absolute=absolute, replaced=replaced)
    held.cycle()
    name = f"{held.ground.points()[0]}/tree/{SOCKET_NAME}" if absolute else SOCKET_NAME
    names = ["inner", "socket"] if replaced else ["inner"]
    held.cycle()
    assert held.ask() == [name, [MODE, True], "question", names]


def hold_echo(task: Task, absolute: bool) -> Check:
    """A server for the runner's questions, which it connects and asks before it asks here."""
    server = bound(task, socket.SOCK_STREAM, absolute, SOCKET_NAME)
    server.listen()
    task.detach()

    def check() -> str:
        connection, _ = server.accept()
        question = connection.recv(100)
        connection.close()
        return question.decode()

    return check


def asked_through_source(held: Held) -> Any:
    """What the server is asked by a client that reaches it through the bind source."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(held.ground.source / "tree" / SOCKET_NAME))
        client.send(b"from the runner")
        return held.ask()


@pytest.mark.parametrize("absolute", [True, False], ids=["absolute", "relative"])
def test_reached_through_source(
    scenario: MakeScenario, placement: Placement, absolute: bool
) -> None:
    """A restored socket has a new file in the source; what was left of the old one is gone."""
    held = scenario(placement).start(hold_echo, absolute=absolute)
    assert asked_through_source(held) == "from the runner"
    held.cycle()
    assert asked_through_source(held) == "from the runner"


@pytest.mark.detached
@pytest.mark.parametrize("absolute", [True, False], ids=["absolute", "relative"])
def test_place_underneath(scenario: MakeScenario, placement: Placement, absolute: bool) -> None:
    """Another socket has the same name beneath the mountpoint, and keeps it."""
    held = scenario(placement).start(hold_echo, absolute=absolute)
    underneath = held.ground.base / "point0" / "tree" / SOCKET_NAME
    underneath.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(underneath))
        before = underneath.stat()
        held.cycle()
        assert underneath.stat() == before
        assert [path.name for path in underneath.parent.iterdir()] == ["socket"]
    assert asked_through_source(held) == "from the runner"


@pytest.mark.detached
@pytest.mark.parametrize("absolute", [True, False], ids=["absolute", "relative"])
def test_place_taken(scenario: MakeScenario, placement: Placement, absolute: bool) -> None:
    """What is no socket is left where the socket was, and the restore fails."""
    held = scenario(placement).start(hold_echo, absolute=absolute)
    held.dump().succeeded()
    name = held.ground.source / "tree" / SOCKET_NAME
    name.unlink()
    name.write_text("somebody's")
    held.restore().failed("unix: Can't bind .*Address already in use")
    held.assert_gone()
    assert name.read_text() == "somebody's"


@pytest.mark.detached
@pytest.mark.parametrize("absolute", [True, False], ids=["absolute", "relative"])
def test_directory_gone(scenario: MakeScenario, placement: Placement, absolute: bool) -> None:
    held = scenario(placement).start(hold_echo, absolute=absolute)
    held.dump().succeeded()
    directory = held.ground.source / "tree" / "dir"
    directory.rename(directory.with_name("elsewhere"))
    directory.symlink_to("elsewhere")
    held.restore().failed("criu-detached: .*directory of the socket .* is not there")
    held.assert_gone()


def hold_alike(task: Task) -> Check:
    """Sockets of one relative name, each in a directory of its own; one is on an attached mount."""

    def start(directory: str) -> Check:
        os.makedirs(directory, exist_ok=True)
        os.chdir(directory)
        server = socket.socket(socket.AF_UNIX)
        server.bind("socket")
        os.chdir("/")
        server.listen()
        here = os.open(directory, os.O_RDONLY)

        def check() -> Any:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(f"/proc/self/fd/{here}/socket")
                client.send(os.path.basename(directory).encode())
                connection, _ = server.accept()
                return [server.getsockname(), connection.recv(100).decode()]

        return check

    checks = [start(task.path("one")), start(f"{task.base}/attached")]
    checks.append(task.fork(lambda: start(task.path("two"))))
    task.detach()
    return lambda: [check() for check in checks]


def test_alike(scenario: MakeScenario, placement: Placement) -> None:
    held = scenario(placement).start(hold_alike)
    held.cycle()
    assert held.ask() == [["socket", "one"], ["socket", "attached"], ["socket", "two"]]


def hold_in_nested(task: Task, absolute: bool) -> Check:
    """A child serves in a mount namespace of its own; its parent's client is connected to it."""

    def child() -> Check:
        if sys.version_info >= (3, 12):
            os.unshare(os.CLONE_NEWNS)
        server = bound(task, socket.SOCK_DGRAM, absolute, SOCKET_NAME)
        task.detach()
        return lambda: [server.getsockname(), server.recv(100).decode()]

    ask = task.fork(child)
    client = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    client.connect(task.path(SOCKET_NAME))
    task.detach()

    def check() -> Any:
        client.send(b"across")
        return ask()

    return check


@pytest.mark.parametrize("absolute", [True, False], ids=["absolute", "relative"])
def test_nested_namespace(scenario: MakeScenario, absolute: bool) -> None:
    held = scenario(Placement.NAMESPACE).start(hold_in_nested, absolute=absolute)
    held.cycle()
    name = f"{held.ground.points()[0]}/tree/{SOCKET_NAME}" if absolute else SOCKET_NAME
    assert held.ask() == [name, "across"]


def hold_in_chroot(task: Task, unlinked: bool) -> Check:
    """A child whose root is the mount: its socket's name is in its root directory."""

    def child() -> Check:
        os.chroot(task.path())
        os.chdir("/")
        server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        server.bind("/socket")
        client = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        client.connect("/socket")
        if unlinked:
            os.unlink("/socket")

        def check() -> Any:
            client.send(b"in the root")
            names = [name for name in os.listdir("/") if name == "socket"]
            return [server.getsockname(), server.recv(100).decode(), names]

        return check

    ask = task.fork(child)
    task.detach()
    return ask


@pytest.mark.detached
@pytest.mark.parametrize("unlinked", [False, True], ids=["there", "unlinked"])
def test_name_in_root(scenario: MakeScenario, placement: Placement, unlinked: bool) -> None:
    held = scenario(placement).start(hold_in_chroot, unlinked=unlinked)
    held.cycle()
    assert held.ask() == ["/socket", "in the root", [] if unlinked else ["socket"]]
