"""Programs that more than one test file needs: what a process holds, and what it answers."""

from __future__ import annotations

import os

from .agent import Check, Task


def run(*command: str) -> None:
    """A command that has to work; ctypes would leave an fd of libffi open in the process."""
    _, status = os.waitpid(os.posix_spawnp(command[0], list(command), os.environ), 0)
    if status:
        raise RuntimeError(f"{command} failed")


def hold_file(task: Task) -> Check:
    """One file; the answer is its content."""
    fd = os.open(task.path("file"), os.O_RDWR)
    task.detach()
    return lambda: os.pread(fd, 100, 0).decode()


def hold_position(task: Task) -> Check:
    """One file, read up to its tenth byte; the answer is its fd and what is left to read."""
    fd = os.open(task.path("file"), os.O_RDWR)
    os.read(fd, 10)
    task.detach()
    return lambda: [fd, os.read(fd, 100).decode()]
