"""What the travellers hold, and what they answer, on each machine alike."""

from __future__ import annotations

import mmap
import os
from typing import Any

from ..integration.harness import kernel
from ..integration.harness.agent import Check, Task, calls
from ..integration.harness.placement import Bind
from ..integration.harness.programs import run

# The engines whose containers travel; podman with one runtime, and the other one by itself.
ENGINES = ("podman-crun", "runc")
BINDS = (Bind(), Bind(flags=kernel.MS_RDONLY))
LINE = "one more\n"  # what a check appends to the log


def hold_volume(task: Task, named: str = "") -> Check:
    """Two mounts of a volume, one of them read-only; each check appends to a log.

    Another log is on a named volume, if there is one.
    """
    logs = []
    if named:
        logs.append(os.open(named + "/log", os.O_WRONLY | os.O_APPEND | os.O_CREAT))
        run("umount", "--lazy", "--no-mtab", named)
    log = os.open(task.path("log"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    file = os.open(task.path("file"), os.O_RDONLY)
    os.read(file, 10)
    with open(task.path("other"), "r+b") as other:
        shared = mmap.mmap(other.fileno(), 6)
    deleted = os.open(task.path("deleted"), os.O_RDWR | os.O_CREAT)
    os.write(deleted, b"no name")
    os.unlink(task.path("deleted"))
    fixed = os.open(task.path("file", 1), os.O_RDONLY)
    os.chdir(task.path("dir"))
    ask_child = task.fork(lambda: lambda: os.pread(file, 10, 0).decode())
    task.detach()

    logs.insert(0, log)

    def check() -> dict[str, Any]:
        for each in logs:
            os.write(each, LINE.encode())
        shared[0] += 1
        with open("../other", "rb") as other:
            assert other.read(1) == shared[:1]
        return {
            "logs": logs,
            "position": os.lseek(file, 0, os.SEEK_CUR),
            "here": sorted(os.listdir(".")),
            "deleted": [os.fstat(deleted).st_nlink, os.pread(deleted, 10, 0).decode()],
            "read-only": bool(os.fstatvfs(fixed).f_flag & os.ST_RDONLY),
            "child": ask_child(),
        }

    return check


def hold_much(task: Task, volume: str) -> Check:
    """The same on a disk; a tmpfs that nobody else has; an anonymous mount of another volume."""
    ask_disk = hold_volume(task)
    point = task.base + "/memory"
    os.mkdir(point)
    run("mount", "-t", "tmpfs", "-o", "size=1m,mode=711", "memory", point)
    os.mkdir(point + "/dir")
    memory = os.open(point + "/dir", os.O_RDONLY)
    saved = os.open("file", os.O_RDWR | os.O_CREAT, dir_fd=memory)
    os.write(saved, b"in memory alone")
    run("umount", "--lazy", "--no-mtab", point)
    (tree,) = calls(f"answer(clone({volume!r}))")
    opened = os.open("tree/file", os.O_RDONLY, dir_fd=tree)

    def check() -> dict[str, Any]:
        facts = os.fstatvfs(memory)
        return {
            **ask_disk(),
            "memory": [os.listdir(memory), os.pread(saved, 100, 0).decode()],
            "size": facts.f_blocks * facts.f_frsize,
            "tree": [
                tree,
                sorted(os.listdir(f"/proc/self/fd/{tree}")),
                os.pread(opened, 100, 0).decode(),
            ],
        }

    return check
