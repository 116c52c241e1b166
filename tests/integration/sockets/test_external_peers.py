"""Unix sockets that are connected to one outside of the dump (criu dump --ext-unix-sk)."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ..conftest import MakeScenario
from ..harness import look
from ..harness.agent import Check, Task
from ..harness.kernel import CLONE_NEWNS, MNT_DETACH, bind, make_private, umount2, unshare
from ..harness.placement import Ground, Placement
from ..harness.scenario import Scenario

EXTERNAL = "--ext-unix-sk"


@contextmanager
def runners(kind: int = socket.SOCK_DGRAM) -> Iterator[socket.socket]:
    """A socket of the runner's, which is not dumped."""
    with socket.socket(socket.AF_UNIX, kind) as server:
        server.settimeout(10)
        yield server


def bind_on_detached(server: socket.socket, ground: Ground) -> Path:
    """Bind a socket by a mount that ends with its mount namespace.

    Returns:
        A directory of the process that has the socket too, by the name "socket"; below it would
        be the directory "place" of the name that the socket has.
    """
    pid = os.fork()
    if not pid:
        try:
            unshare(CLONE_NEWNS)
            make_private()
            if ground.seen_base != ground.base:
                bind(ground.base, ground.seen_base)
            place = ground.seen_base / "place"
            place.mkdir()
            bind(ground.base, place)
            server.bind(str(place / "socket"))
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert status == 0
    return ground.seen_base


def hold_client(task: Task, peer: str, kind: int = socket.SOCK_DGRAM) -> Check:
    """A socket that is connected to one of another process."""
    client = socket.socket(socket.AF_UNIX, kind)
    client.connect(peer)
    return lambda: [client.send(b"question"), client.getpeername(), client.fileno()]


def assert_heard(held: Scenario, server: socket.socket) -> None:
    """What the process sends arrives."""
    sent, name, _ = held.ask()
    assert name == server.getsockname()
    assert server.recv(100) == b"question" and sent == len(b"question")


def come_back(held: Scenario, plugin: bool = True) -> None:
    """Dump and restore, with what CRIU wants to be told."""
    held.dump(EXTERNAL, plugin=plugin).succeeded()
    held.restore(EXTERNAL, plugin=plugin).succeeded()


@pytest.mark.parametrize("where", [Placement.HOST, Placement.NAMESPACE], ids=lambda p: p.value)
def test_detached_peer(scenario: MakeScenario, where: Placement) -> None:
    """By its name alone CRIU finds the socket again: that has to lead to it."""
    held = scenario(where, attached=True)
    place = held.ground.base / "place"
    with runners() as server:
        directory = bind_on_detached(server, held.ground)
        held.start(hold_client, peer=str(directory / "socket"))
        for _ in range(2):
            run = held.dump(EXTERNAL, plugin=True)
            run.failed("criu-detached: .*connected to .*place/socket: .*bind its directory")
            assert_heard(held, server)
            (place / "socket").touch()  # another file
        (place / "socket").unlink()
        place.rmdir()
        place.symlink_to(directory)
        come_back(held)
        assert_heard(held, server)


@pytest.mark.parametrize("plugin", [True, False])
def test_attached_peer(scenario: MakeScenario, tmp_path: Path, plugin: bool) -> None:
    """It is CRIU's business, also where its name is gone."""
    name = tmp_path / "socket"
    with runners() as server:
        server.bind(str(name))
        held = scenario(attached=True).start(hold_client, peer=str(name))
        come_back(held, plugin)
        assert_heard(held, server)
        name.unlink()
        held.dump(EXTERNAL, plugin=plugin).succeeded()
        held.restore(EXTERNAL, plugin=plugin).failed("Can't connect")
        held.assert_gone()


def test_peer_that_is_given(scenario: MakeScenario) -> None:
    """The user will give CRIU the socket itself (--inherit-fd): no name matters."""
    held = scenario(attached=True)
    with runners() as server:
        directory = bind_on_detached(server, held.ground)
        held.start(hold_client, peer=str(directory / "socket"))
        *_, fd = held.ask()
        number = os.stat(f"/proc/{held.pid}/fd/{fd}").st_ino
        held.dump("--external", f"unix[{number}]", plugin=True).succeeded()


def test_stream(scenario: MakeScenario) -> None:
    """CRIU refuses these, wherever they are."""
    held = scenario(attached=True)
    with runners(socket.SOCK_STREAM) as server:
        directory = bind_on_detached(server, held.ground)
        server.listen()
        held.start(hold_client, peer=str(directory / "socket"), kind=socket.SOCK_STREAM)
        with server.accept()[0]:
            run = held.dump(EXTERNAL, plugin=True)
        run.failed("Can't dump half of stream unix connection")
        assert not [line for line in run.errors() if "criu-detached: " in line]


def hold_logger(task: Task, peer: str) -> Check:
    """A logger, in a directory of the mount, that sends what it reads."""
    read, write = os.pipe()
    actions = [(os.POSIX_SPAWN_DUP2, read, 0), (os.POSIX_SPAWN_CLOSE, write)]
    os.chdir(task.path("dir"))
    command = ["logger", "--tag", "tagged", "--socket", peer]
    os.posix_spawnp(command[0], command, os.environ, file_actions=actions)
    os.chdir("/")
    os.close(read)
    return lambda: os.write(write, b"a line\n")


def test_logger(scenario: MakeScenario, tmp_path: Path) -> None:
    """A program whose directory is unmounted; who takes its messages runs on, or starts anew."""
    name = tmp_path / "log"
    held = scenario()
    with runners() as server:
        server.bind(str(name))
        held.start(hold_logger, peer=str(name))
        held.ask()
        assert server.recv(1000).endswith(b" tagged: a line")  # it has begun
        umount2(Path(held.ground.points()[0]), MNT_DETACH)
        logger = look.tree(held.pid)[1]
        assert os.readlink(f"/proc/{logger}/cwd") == "/tree/dir"
        come_back(held)
        held.ask()
        assert server.recv(1000).endswith(b" tagged: a line")
        held.dump(EXTERNAL).succeeded()
    name.unlink()
    with runners() as server:
        server.bind(str(name))
        held.restore(EXTERNAL).succeeded()
        held.ask()
        assert server.recv(1000).endswith(b" tagged: a line")
        assert os.readlink(f"/proc/{logger}/cwd") == "/tree/dir"
