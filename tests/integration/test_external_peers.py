"""Unix sockets that are connected to one outside of the dump (criu dump --ext-unix-sk)."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .conftest import MakeScenario
from .harness.agent import Check, Task
from .harness.kernel import CLONE_NEWNS, bind, make_private, unshare
from .harness.placement import Ground, Placement
from .harness.scenario import Scenario

EXTERNAL = "--ext-unix-sk"


@contextmanager
def datagrams() -> Iterator[socket.socket]:
    """A socket of the runner's, which is not dumped."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
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


def hold_client(task: Task, peer: str) -> Check:
    """A datagram socket that is connected to one of another process."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
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
    with datagrams() as server:
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
    with datagrams() as server:
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
    with datagrams() as server:
        directory = bind_on_detached(server, held.ground)
        held.start(hold_client, peer=str(directory / "socket"))
        *_, fd = held.ask()
        number = os.stat(f"/proc/{held.pid}/fd/{fd}").st_ino
        held.dump("--external", f"unix[{number}]", plugin=True).succeeded()
