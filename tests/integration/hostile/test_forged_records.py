"""Hostile images: whatever the records say, a restore ends in a line and changes nothing else."""

from __future__ import annotations

import os
import random
import socket
from pathlib import Path
from typing import Any

import pytest

from ..conftest import MakeScenario
from ..forge import forge
from ..harness.agent import Check, Task
from ..harness.programs import run

pytestmark = pytest.mark.detached

# By hand: CRIU_DETACHED_FORGED=3000:7 for three thousand that begin with another number.
COUNT, _, FIRST = os.environ.get("CRIU_DETACHED_FORGED", "30").partition(":")


def hold_all(task: Task) -> Check:
    """Something of every record: on a bind source, and on a filesystem that is made anew."""
    memory = f"{task.base}/memory"
    os.mkdir(memory)
    run("mount", "-n", "-t", "tmpfs", "-o", "size=10m", "memory", memory)
    names = [task.path(name) for name in ("file", "other", "null", "doomed")]
    names += [f"{memory}/{name}" for name in ("file", "doomed")]
    fds = [os.open(name, os.O_RDWR | os.O_CREAT) for name in names]
    for fd in fds:
        os.write(fd, b"content" * 50)
    os.setxattr(fds[3], "user.x", b"1")
    os.mkdir(f"{memory}/d")
    os.link(names[4], f"{memory}/d/link")
    os.symlink("file", f"{memory}/d/symlink")
    os.link(names[1], task.path("dir/alias"))
    os.mkdir(task.path("gone"))
    fds += [os.open(name, os.O_RDONLY) for name in (task.path("gone"), memory)]
    os.rmdir(task.path("gone"))
    for name in (names[1], names[3], names[5]):
        os.unlink(name)
    server = socket.socket(socket.AF_UNIX)
    server.bind(task.path("socket"))
    server.listen(1)
    os.chdir(task.path("dir"))
    run("umount", "-l", "-n", memory)
    task.detach()
    return lambda: [[os.pread(fd, 7, 0).decode() for fd in fds[:-2]], server.getsockname()]


def listing(root: Path) -> dict[str, Any]:
    """Every name beneath a directory, with what has to stay; CRIU binds the socket anew."""
    found = {}
    for path in [root, *sorted(root.rglob("*"))]:
        facts = path.lstat()
        found[str(path)] = [
            facts.st_mode,
            facts.st_nlink,
            facts.st_uid,
            facts.st_gid,
            facts.st_size,
        ]
        if not path.is_socket():
            found[str(path)] += [facts.st_ino, 0 if path.is_dir() else facts.st_mtime_ns]
    return found


def test_forged(scenario: MakeScenario) -> None:
    """It may succeed, for images are a program; it does not crash, hang, or leave a trace."""
    held = scenario().start(hold_all)
    expected, pid = held.ask(), held.pid
    held.dump().succeeded()
    paths = [held.images / f"criu-detached{name}.img" for name in ("", "-data")]
    records, data = (path.read_bytes() for path in paths)
    before = listing(held.ground.source)
    for seed in range(int(FIRST or 0), int(FIRST or 0) + int(COUNT)):
        chance = random.Random(seed)
        cut = chance.randrange(len(data)) if chance.random() < 0.1 else len(data)
        paths[0].write_bytes(forge(records, seed))
        paths[1].write_bytes(data[:cut])
        restored = held.restore(prefix=["timeout", "--signal=KILL", "60"])
        assert restored.status in (0, 1), f"{seed}: {restored.report()}"
        assert "defect of the plugin" not in restored.log, f"{seed}: {restored.report()}"
        if restored.status:
            restored.failed("criu-detached: |has bad (mode|size)|unix: Can't bind")
            held.assert_gone()
            assert listing(held.ground.source) == before, f"{seed}: {restored.report()}"
        else:
            held.kill()
            held.pid, before = pid, listing(held.ground.source)
    paths[0].write_bytes(records)
    paths[1].write_bytes(data)
    held.restore().succeeded()
    assert held.ask() == expected
