"""What else runs on a machine: broken, slow and busy processes that are none of the dump's.

Each holds something as fd, working directory, root, executable and mapping: of a FUSE filesystem of
another user's, of one whose server is stopped, of one whose server is dead; attached ones and such
as were unmounted. Others hold what was a process, pass fds on, or fork and end all the time.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from . import kernel

USER = 12345  # nobody's
PROGRAM = "/usr/bin/sleep"

# What a process does with a directory that it is given. Its last line says that it is ready.
HOLD = """
import mmap, os, subprocess, sys
user = int(sys.argv[2])
os.chdir(os.path.dirname(sys.argv[1]))
os.setgroups([])
os.setgid(user)
os.setuid(user)
os.chdir(os.path.basename(sys.argv[1]))
child = subprocess.Popen(["./program", "infinity"])
opened = os.open("file", os.O_RDONLY), os.open(".", os.O_RDONLY), os.open("file", os.O_PATH)
mapped = mmap.mmap(opened[0], 4, prot=1)
print(child.pid, flush=True)
sys.stdin.read()
"""
ROOT = "import os, sys; os.chroot(sys.argv[1]); print(flush=True); sys.stdin.read()"

# Its process id is that of a process which has ended.
STALE = """
import os, sys
child = os.fork()
if not child:
    os.read(0, 1)
    os._exit(0)
os.chdir(f"/proc/{child}")
kept = [os.open(f"/proc/{child}/{name}", os.O_RDONLY) for name in ("fd", "task", "ns", "status")]
kept.append(os.open(f"/proc/{child}/fd", os.O_PATH))
os.kill(child, 9)
os.waitpid(child, 0)
print(flush=True)
sys.stdin.read()
"""

# A ring of processes that pass an fd on, and a chain of which each forks the next and ends.
RING = """
import os, socket, sys, time
fd = os.open(sys.argv[1], os.O_RDONLY)
pairs = [socket.socketpair() for _ in range(6)]
for place in range(6):
    if not os.fork():
        while True:
            if fd < 0 or place:
                _, [fd], _, _ = socket.recv_fds(pairs[place][0], 1, 1)
            time.sleep(float(sys.argv[2]))
            socket.send_fds(pairs[(place + 1) % 6][1], [b"x"], [fd])
            os.close(fd)
            fd = -1
os.close(fd)
print(flush=True)
sys.stdin.read()
os.killpg(0, 9)
"""
CHAIN = """
import os, sys, time
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
print(flush=True)
os.close(1)
while not os.path.exists(sys.argv[3]):
    os.write(fd, b"x")
    time.sleep(float(sys.argv[2]))
    if os.fork():
        os._exit(0)
"""


class Program:
    """A process of the machine's that is ready."""

    def __init__(self, code: str, *arguments: str | Path, prefix: Sequence[str] = ()) -> None:
        command = [*prefix, sys.executable, "-c", code, *map(str, arguments)]
        pipe = subprocess.PIPE
        self.running = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, text=True, start_new_session=True
        )
        assert self.running.stdout is not None
        self.said = self.running.stdout.readline()
        assert self.said, f"it has failed: {code}"

    def end(self) -> None:
        """End it, and all of its session."""
        with suppress(ProcessLookupError):
            os.killpg(self.running.pid, signal.SIGKILL)
        self.running.kill()
        for pipe in (self.running.stdin, self.running.stdout):
            if pipe is not None:
                pipe.close()
        self.running.wait()


def serve(point: Path, options: str) -> int:
    """Mount a FUSE filesystem, and return the process that serves it."""
    from ..fuse_files import Files
    from ..mounts.test_served import open_fuse

    fuse = open_fuse()
    kernel.mount("neighbour", point, "fuse", 0, f"fd={fuse},rootmode=40000,{options}")
    pid = os.fork()
    if not pid:
        try:
            os.closerange(0, fuse)
            os.closerange(fuse + 1, 65536)
            Files(hides=False, numbers="files").serve(fuse)
        finally:
            os._exit(0)
    os.close(fuse)
    return pid


def as_user(user: int, directory: Path, work: Callable[[], None]) -> None:
    """Do something in a directory, in a child that is another user."""
    child = os.fork()
    if not child:
        status = 1
        try:
            os.chdir(directory)
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
            work()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


def fill(point: Path) -> None:
    """A file, and a program."""
    (point / "file").write_text("content")
    shutil.copyfile(PROGRAM, point / "program")
    (point / "program").chmod(0o755)


@contextmanager
def fuse_neighbour(work: Path, kind: str, attached: bool) -> Iterator[None]:
    """Processes that hold all sorts of a FUSE filesystem."""
    point = work / f"{kind}-{attached}"
    point.mkdir(parents=True)
    user = USER if kind == "user" else 0
    other = "" if user else ",allow_other"
    server = serve(point, f"user_id={user},group_id={user}{other}")
    with ExitStack() as stack:
        stack.callback(unmount, point)
        as_user(user, work, lambda: fill(Path(point.name)))
        programs = [Program(HOLD, point, str(user))]
        if not user:
            programs.append(Program(ROOT, point))
        for program in programs:
            stack.callback(program.end)
        stack.callback(end_server, server)  # first, for whoever ends tells the server of it
        if not attached:
            kernel.umount2(point, kernel.MNT_DETACH)
        if kind == "stopped":
            os.kill(server, signal.SIGSTOP)
        elif kind == "dead":
            os.kill(server, signal.SIGKILL)
        yield


def end_server(server: int) -> None:
    """Let it run, if it is stopped, and end it."""
    with suppress(ProcessLookupError):
        os.kill(server, signal.SIGKILL)
        os.kill(server, signal.SIGCONT)
    with suppress(ChildProcessError):
        os.waitpid(server, 0)


def unmount(point: Path) -> None:
    """Unmount what is still there."""
    with suppress(OSError):
        kernel.umount2(point, kernel.MNT_DETACH)


@contextmanager
def program(code: str, *arguments: str | Path) -> Iterator[None]:
    """A process, for a while."""
    started = Program(code, *arguments)
    try:
        yield
    finally:
        started.end()


@contextmanager
def chain(path: Path, seconds: float, stop: Path) -> Iterator[None]:
    """A chain of processes that have a file, for a while."""
    started = Program(CHAIN, path, str(seconds), stop)
    try:
        yield
    finally:
        stop.touch()
        started.end()
        time.sleep(2 * seconds)


@contextmanager
def all_neighbours(work: Path) -> Iterator[None]:
    """All of them at once."""
    work.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        for kind in ("user", "stopped", "dead"):
            for attached in (True, False):
                stack.enter_context(fuse_neighbour(work, kind, attached))
        stack.enter_context(program(STALE))
        stack.enter_context(program(RING, "/dev/null", "0.01"))
        stack.enter_context(chain(work / "theirs", 0.01, work / "stop"))
        yield
