"""A redis-server under load is dumped and restored, and no acknowledged write is lost."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from demo.client import Load, count_kept
from demo.telling import detached_files, note, step, table
from tests.integration.harness import criu
from tests.integration.harness.agent import Check, Task
from tests.integration.harness.placement import SUBDIRECTORY, Bind
from tests.integration.harness.scenario import Scenario

WRITES = 2000


def start_redis(directory: str, port: int) -> subprocess.Popen[str]:
    """Start a server that has its data in a directory, and wait until it has read them."""
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    command += ["--appendonly", "yes", "--appendfsync", "always"]
    server = subprocess.Popen(
        command, cwd=directory, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    for line in server.stdout:
        if "Ready to accept connections" in line:
            return server
    raise RuntimeError("redis-server did not start")


def keep_server(task: Task, port: int) -> Check:
    """What the demonstrated process does: it has a redis-server as its child."""
    server = start_redis(task.path(), port)
    task.detach()
    return lambda: server.pid


def demonstrate() -> None:
    """The steps, each with what is seen of it."""
    if not shutil.which("redis-server"):
        step("The second part needs redis-server, which is not installed here: skipped.")
        return
    if not criu.has_inet_sockets():
        step("The second part is left out: this CRIU cannot dump redis-server's sockets here.")
        return
    port = free_port()
    with Scenario(binds=[Bind(SUBDIRECTORY)]) as held:
        server = held.start(keep_server, port=port).ask()
        before = detached_files(server)
        step(
            f"A redis-server, process {server}, works in a directory of a bind mount that was then"
        )
        note("unmounted lazily, and syncs each write to its append-only file there.")

        with loaded(port) as load:
            load.wait_for(WRITES)
            step(f"A client writes without a pause; {load.acknowledged} writes are acknowledged.")

            dump = held.dump("--tcp-close").succeeded()
            held.assert_gone()
            step(f"In the midst of it the server is dumped, in {dump.seconds * 1000:.0f} ms.")
            note(f"It is gone after {load.acknowledged} writes; the client tries to connect again.")

            restore = held.restore("--tcp-close").succeeded()
            step(f"Restored in {restore.seconds * 1000:.0f} ms as process {server}.")
            table(before, detached_files(server))
            assert os.readlink(f"/proc/{server}/cwd") == "/", "not in the mount's root"

            load.wait_for(WRITES)
            writes = load.stop()
        step(f"The client has gone on with connection {load.connections}, up to {writes} writes.")
        expect_kept(port, writes)
        note("The server has every one that it acknowledged.")

        held.kill()
        expect_on_disk(held.ground.source / "tree", writes)
        step("So has another server, which reads the file in the bind source.")


@contextmanager
def loaded(port: int) -> Iterator[Load]:
    """A client that writes for as long as the block runs."""
    load = Load(port)
    load.start()
    try:
        yield load
    finally:
        load.stop()


def expect_kept(port: int, acknowledged: int) -> None:
    """No acknowledged write is lost."""
    kept = count_kept(port, acknowledged)
    assert kept == acknowledged, f"{acknowledged} writes were acknowledged, {kept} are there"


def expect_on_disk(directory: Path, acknowledged: int) -> None:
    """Let a fresh server read the data by their name in the bind source."""
    port = free_port()
    with start_redis(str(directory), port) as server:
        try:
            expect_kept(port, acknowledged)
        finally:
            server.kill()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
