"""A redis-server under load is dumped and restored, and no acknowledged write is lost."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from demo.client import Load, answers, count_kept
from demo.stage import Stage, wait_until
from demo.telling import detached_files, heading, note
from tests.integration.harness import criu
from tests.integration.harness.scenario import reap

WRITES = 2000


def demonstrate() -> None:
    """Run it; raises AssertionError when a step goes wrong."""
    heading("A redis-server under load, its directory on such a mount")
    if not shutil.which("redis-server"):
        note("left out: redis-server is not installed here")
        return
    if not criu.has_inet_sockets():
        note("left out: this CRIU cannot dump redis-server's sockets on this kernel")
        return
    port = _free_port()
    with Stage() as stage:
        stage.run("mkdir disk mnt images")
        stage.run("mount --bind disk mnt")
        redis = f"redis-server --port {port} --bind 127.0.0.1 --save '' --daemonize yes"
        redis += " --appendonly yes --appendfsync always"
        stage.run(f"{redis} --dir $PWD/mnt --pidfile $PWD/redis.pid")
        wait_until(lambda: answers(port), "redis-server's first answer")
        stage.show("PID=$(cat redis.pid)")
        stage.follow(int((stage.path / "redis.pid").read_text()))
        stage.run("umount --lazy mnt")
        before = detached_files(stage.pid)
        with _loaded(port) as load:
            load.wait_for(WRITES)
            note(f"demo/client.py writes without a pause: {load.acknowledged} writes by now")
            stage.dump("--tcp-close")
            note(f"after {load.acknowledged} writes; the client tries to connect again")
            stage.restore(before, "--tcp-close")
            load.wait_for(WRITES)
            writes = load.stop()
        note(f"the client went on with connection {load.connections}, up to {writes} writes")
        kept = count_kept(port, writes)
        assert kept == writes, f"{writes} writes were acknowledged, {kept} are there"
        note("the server has every write that it acknowledged")
        stage.run(f"redis-cli -p {port} shutdown nosave || kill -KILL $PID")
        reap([stage.pid])
        _read_again(stage, redis, port, writes)


def _read_again(stage: Stage, redis: str, port: int, writes: int) -> None:
    """Let a fresh server read the data by their name in the bind source."""
    stage.run(f"{redis} --dir $PWD/disk --pidfile $PWD/redis.pid")
    wait_until(lambda: answers(port), "redis-server's first answer")
    stage.follow(int((stage.path / "redis.pid").read_text()))
    kept = count_kept(port, writes)
    assert kept == writes, f"{writes} writes were acknowledged, {kept} are in the file"
    note("so has another server, which reads the file by its name")


@contextmanager
def _loaded(port: int) -> Iterator[Load]:
    """A client that writes for as long as the block runs."""
    load = Load(port)
    load.start()
    try:
        yield load
    finally:
        load.stop()


def _free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
