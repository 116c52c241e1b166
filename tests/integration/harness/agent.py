"""The process that is dumped: holds files as a test's program says, and answers questions.

This text is handed to a fresh interpreter with -c, so that no file of the checkout is open in
it, and it uses the standard library alone. It reports through a result file on an attached mount
and tells the runner with SIGUSR1; it is asked with SIGUSR1 too. Both survive a dump: between
two questions the process holds nothing but what its program opened.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any

Check = Callable[[], Any]


# Calls that Python lacks. A program of its own makes them: ctypes would leave an fd of libffi open.
CALLS = """
import ctypes, os, socket, struct, sys

libc = ctypes.CDLL(None, use_errno=True)


def call(number, *arguments):
    result = libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), number)
    return result


def clone(path, flags=0):
    return call(428, -100, os.fsencode(path), 1 | flags)


def set_attributes(tree, attributes, userns=0):
    call(442, tree, b"", 0x1000, struct.pack("=QQQQ", attributes, 0, 0, userns), 32)


def move_mount(tree, at, path):
    call(429, tree, b"", at, os.fsencode(path), 4)


def fsopen(fs_type):
    return call(430, fs_type.encode(), 0)


def fspick(path):
    return call(433, -100, path.encode(), 0)


def fsmount(fs_type, attributes=0, **options):
    context = fsopen(fs_type)
    for name, value in options.items():
        call(431, context, 1, name.encode(), os.fsencode(value), 0)
    call(431, context, 6, None, None, 0)
    return call(432, context, 0, attributes)


def get_fd(pid, fd):
    return call(438, os.pidfd_open(pid), fd, 0)


def answer(*fds):
    socket.send_fds(socket.socket(fileno=0), [b"!"], fds)


"""


def calls(script: str) -> list[int]:
    """Run a script that has these calls; returns the fds that it answers with."""
    ours, theirs = socket.socketpair()
    command = [os.path.realpath(sys.executable), "-I", "-S", "-c", CALLS + script]
    actions = [(os.POSIX_SPAWN_DUP2, theirs.fileno(), 0)]
    pid = os.posix_spawn(command[0], command, os.environ, file_actions=actions)
    theirs.close()
    _, fds, _, _ = socket.recv_fds(ours, 1, 8)
    ours.close()
    _, status = os.waitpid(pid, 0)
    if status:
        raise RuntimeError(f"{script} failed")
    return fds


class Task:
    """What a program gets: where its files are, and how their mounts are detached."""

    def __init__(
        self, base: str, points: list[str], prefixes: list[str | None], attached: bool
    ) -> None:
        self.base = base
        self.points = points
        self._prefixes = prefixes
        self.attached = attached

    def path(self, name: str = "", mount: int = 0) -> str:
        """A file of the tree that every test has, seen through one of the bind mounts."""
        point, prefix = self.points[mount], self._prefixes[mount]
        if prefix is None:  # a single file is mounted: there is no other to name
            return point
        return "/".join(part for part in (point, prefix, name) if part)

    def move_into_trees(self) -> None:
        """Clone the binds, unmount them, and go on with the clones, which are in no namespace."""
        clones = (calls(f"answer(clone({point!r}))")[0] for point in self.points)
        trees = [f"/proc/self/fd/{tree}" for tree in clones]
        self.detach()
        self.points, self.attached = trees, True

    def detach(self) -> None:
        """Unmount the binds lazily; in the attached twin of a test they stay.

        A program does it, for ctypes would leave an fd of libffi open in the process.
        """
        if self.attached:
            return
        command = ["umount", "--lazy", "--no-mtab", *self.points]
        umount = os.posix_spawnp("umount", command, os.environ)
        _, status = os.waitpid(umount, 0)
        if status:
            raise RuntimeError(f"{command} failed")

    def fork(self, make_check: Callable[[], Check]) -> Check:
        """Fork a child that runs make_check and then answers; returns how the parent asks it.

        Pipes are kernel-internal mounts: CRIU restores them by itself.
        """
        ask_read, ask_write = os.pipe()
        answer_read, answer_write = os.pipe()
        if not os.fork():
            os.close(ask_write)
            os.close(answer_read)
            _serve(make_check, ask_read, answer_write)
        os.close(ask_read)
        os.close(answer_write)
        os.read(answer_read, 1)  # make_check is done

        def ask() -> Any:
            os.write(ask_write, b"?")
            size = int(os.read(answer_read, 8))
            return json.loads(os.read(answer_read, size))

        return ask


def _serve(make_check: Callable[[], Check], ask: int, answer: int) -> None:
    """A forked child's life: answers as long as the parent asks."""
    try:
        check = make_check()
        os.write(answer, b"!")
        while os.read(ask, 1):
            text = json.dumps(check()).encode()
            os.write(answer, b"%08d" % len(text) + text)
    finally:
        os._exit(0)


def _report(base: str, runner: int, answer: dict[str, Any]) -> None:
    """Write the answer so that it is there whole or not at all, then wake the runner."""
    path = os.path.join(base, "result")
    with open(path + ".new", "w", encoding="utf-8") as stream:
        json.dump(answer, stream)
    os.rename(path + ".new", path)
    # From a namespace the runner is not seen, or not to be touched.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(runner, signal.SIGUSR1)


def _attempt(work: Callable[[], Any]) -> tuple[dict[str, Any], Any]:
    """The answer that is reported for a piece of work, and what it returned."""
    try:
        value = work()
        answer = {"value": None if callable(value) else value}
        json.dumps(answer)
    except BaseException:
        return {"error": traceback.format_exc()}, None
    return answer, value


def main(config: dict[str, Any]) -> None:
    """Start the program, then answer a question for each SIGUSR1, for ever."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    base, runner = config["base"], config["runner"]
    task = Task(base, config["points"], config["prefixes"], config["attached"])
    if config["in_trees"]:
        task.move_into_trees()
    names: dict[str, Any] = {"Task": Task, **config["constants"]}

    def start() -> Any:
        for name, module in config["modules"].items():
            names[name] = importlib.import_module(module)
        exec(config["source"], names)  # noqa: S102  (a program of this test suite)
        return names[config["program"]](task, **config["arguments"])

    answer, check = _attempt(start)
    _report(base, runner, answer)
    while True:
        signal.sigwait({signal.SIGUSR1})
        answer, _ = _attempt(check)
        _report(base, runner, answer)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
