"""Every mode of CRIU takes files on a detached mount along, and takes them along again."""

from __future__ import annotations

import fcntl
import mmap
import os
import re
import select
import signal
import socket
import subprocess
import tty
from typing import Self

import pytest

from ..conftest import MakeScenario
from ..harness import look
from ..harness.agent import Check, Task
from ..harness.criu import CriuRun, criu, default_plugins
from ..harness.placement import Placement
from ..harness.scenario import DEADLINE, Held, Scenario

PAGES = 64


def hold_life(task: Task) -> Check:
    """A file, a mapping of it, a working directory, and memory that grows with each question."""
    fd = os.open(task.path("file"), os.O_RDWR)
    shared = mmap.mmap(fd, 10)
    memory = mmap.mmap(-1, PAGES * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    os.chdir(task.path("dir"))
    task.detach()

    def check() -> dict[str, object]:
        turn = memory[0] = memory[0] + 1
        memory[turn * 4096] = turn
        shared[0:1] = b"%d" % turn
        with open("inner") as beside:
            return {
                "memory": [memory[page * 4096] for page in range(turn + 1)],
                "file": os.pread(fd, 10, 0).decode(),
                "beside": beside.read(),
            }

    return check


def assert_lives(held: Held, turn: int) -> None:
    """The process remembers every question, and what it writes reaches the source."""
    text = f"{turn}123456789"
    assert held.ask() == {
        "memory": [turn, *range(1, turn + 1)],
        "file": text,
        "beside": "inner\n",
    }
    assert (held.ground.source / "tree" / "file").read_text().startswith(text)


def run_beside(held: Scenario, verb: str, *options: str) -> CriuRun:
    """A criu that is neither the dump nor the restore itself: with the plugin, if they have it."""
    plugins = None if held.ground.attached else default_plugins()
    return criu(verb, held.images, options, plugins=plugins).succeeded()


def wait_until_stopped(pid: int) -> None:
    """The process is this one's child, which is told of its stop."""
    _, status = os.waitpid(pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status), f"wait status {status:#x}"


@pytest.mark.covers("file", "shared_mapping", "cwd")
def test_leave_running(scenario: MakeScenario, placement: Placement) -> None:
    """Dumped again and again while it lives; what was dumped last is restored when it is dead."""
    held = scenario(placement).start(hold_life)
    before = look.seen(held.pid)
    for turn in (1, 2):
        held.dump("--leave-running").succeeded()
        assert look.seen(held.pid) == before
        assert_lives(held, turn)
    pid = held.pid
    held.kill()
    held.pid = pid
    for turn in (2, 3):  # the second answer was given after the last dump
        held.restore().succeeded()
        assert look.seen(pid) == before
        assert_lives(held, turn)
        held.dump().succeeded()


def test_leave_stopped(scenario: MakeScenario, placement: Placement) -> None:
    held = scenario(placement).start(hold_life)
    before = look.seen(held.pid)
    tree = ["--tree", str(held.pid), *held.ground.dump_options()]
    run_beside(held, "dump", *tree, "--leave-stopped")
    wait_until_stopped(held.pid)
    os.kill(held.pid, signal.SIGCONT)
    assert_lives(held, 1)
    for turn in (2, 3):
        held.dump().succeeded()
        held.restore("--leave-stopped").succeeded()
        wait_until_stopped(held.pid)
        assert look.seen(held.pid) == before
        os.kill(held.pid, signal.SIGCONT)
        assert_lives(held, turn)


def require_dirty_tracking() -> None:
    """Skip a test that makes a pre-dump where that is not possible."""
    tracks = ["criu", "check", "--feature", "mem_dirty_track"]
    if subprocess.run(tracks, check=False, capture_output=True).returncode:
        pytest.skip("this kernel cannot tell which pages were written to")


def test_pre_dump_iterations(scenario: MakeScenario, placement: Placement) -> None:
    """Memory is copied in steps, each with what changed since the one before."""
    require_dirty_tracking()
    held = scenario(placement).start(hold_life)
    before = look.seen(held.pid)
    plugins = None if held.ground.attached else default_plugins()
    turn = 0
    for _ in range(2):
        previous: list[str] = []
        for name in ("first", "second"):
            options = ["--tree", str(held.pid), "--track-mem", *previous]
            options += held.ground.dump_options()
            criu("pre-dump", held.work / name, options, plugins=plugins).succeeded()
            previous = ["--prev-images-dir", f"../{name}"]
            turn += 1
            assert_lives(held, turn)
        held.dump("--track-mem", *previous).succeeded()
        held.restore().succeeded()
        assert look.seen(held.pid) == before
        turn += 1
        assert_lives(held, turn)


def test_lazy_pages(scenario: MakeScenario, placement: Placement) -> None:
    """The process goes on before its memory is there: a daemon brings each page on demand."""
    supported = ["criu", "check", "--feature", "uffd"]
    if subprocess.run(supported, check=False, capture_output=True).returncode:
        pytest.skip("this kernel has no userfaultfd")
    held = scenario(placement).start(hold_life)
    assert_lives(held, 1)
    before = look.seen(held.pid)
    for turn in (2, 3):
        held.dump().succeeded()
        run_beside(held, "lazy-pages", "--daemon")
        held.restore("--lazy-pages").succeeded()
        assert look.seen(held.pid) == before
        assert_lives(held, turn)


def test_page_server(scenario: MakeScenario, placement: Placement) -> None:
    """Memory goes over the network to where it will be needed, all else into the images."""
    held = scenario(placement).start(hold_life)
    assert_lives(held, 1)
    before = look.seen(held.pid)
    local = ["--address", "127.0.0.1"]
    for turn in (2, 3):
        server = run_beside(held, "page-server", *local, "--daemon")
        port = re.findall(r"Using (\d+) port", server.log)[-1]
        held.dump("--page-server", *local, "--port", port).succeeded()
        held.restore().succeeded()
        assert look.seen(held.pid) == before
        assert_lives(held, turn)


def hold_job(task: Task, terminal: str) -> Check:
    """A shell's job, in the foreground of its terminal; it is asked through the terminal."""
    keyboard = os.open(terminal, os.O_RDWR)  # the leader of a session gets it as its terminal
    pid = os.fork()
    if not pid:
        fd = os.open(task.path("file"), os.O_RDONLY)
        task.detach()
        while os.read(keyboard, 1):
            os.write(keyboard, os.pread(fd, 10, 0))
    return lambda: pid


class Terminal:
    """A terminal and its user; when it is closed, all that run on it are hung up."""

    def __init__(self) -> None:
        self._master, self.slave = os.openpty()
        tty.setraw(self.slave)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._master)
        os.close(self.slave)

    def ask(self) -> str:
        """Type something, and read what is answered."""
        os.write(self._master, b"?")
        return self.read()

    def read(self) -> str:
        """What is written on it."""
        ready, _, _ = select.select([self._master], [], [], DEADLINE)
        assert ready, "nobody wrote on the terminal"
        return os.read(self._master, 100).decode()


def files_of_job(pid: int) -> dict[int, tuple[str, bool]]:
    """What it has open besides its terminal: the link, and whether its mount is detached."""
    return {
        fd: (file.link, look.is_detached(pid, fd))
        for fd, file in look.open_files(pid).items()
        if not file.link.startswith("/dev/")
    }


def restore_as_job(held: Scenario, terminal: Terminal, *options: str) -> subprocess.Popen[bytes]:
    """Have a shell on the terminal run criu restore, and stay as its leader."""
    command = ["setsid", "--ctty", "sh", "-c", '"$@" && echo restored && exec sleep infinity', "sh"]
    command += ["criu", "restore", "--shell-job", "--images-dir", str(held.images), *options]
    command += [] if held.ground.attached else ["--lib", str(default_plugins())]
    return subprocess.Popen(command, stdin=terminal.slave, stdout=terminal.slave)


def test_shell_job(scenario: MakeScenario) -> None:
    """A job comes back on the terminal that criu restore is started on."""
    held = scenario()
    with Terminal() as terminal:
        held.start(hold_job, terminal=os.ttyname(terminal.slave))
        job = held.ask()
        assert terminal.ask() == "0123456789"
        before = files_of_job(job)
        run_beside(held, "dump", "--tree", str(job), "--shell-job")
        held.kill()  # the shell
    for _ in range(2):
        with Terminal() as terminal:
            shell = restore_as_job(held, terminal, "--restore-detached")
            assert terminal.read() == "restored\n"
            held.pid = job
            assert terminal.ask() == "0123456789"
            assert files_of_job(job) == before
            held.dump("--shell-job").succeeded()
        shell.wait()


@pytest.mark.detached
def test_foreground_restore(scenario: MakeScenario) -> None:
    """While criu restore waits for what it restored, that can be dumped again."""
    held = scenario()
    with Terminal() as terminal:
        held.start(hold_job, terminal=os.ttyname(terminal.slave))
        job = held.ask()
        run_beside(held, "dump", "--tree", str(job), "--shell-job")
        held.kill()
    with Terminal() as terminal:
        shell = restore_as_job(held, terminal)
        assert terminal.ask() == "0123456789"
        try:
            run_beside(held, "dump", "--tree", str(job), "--shell-job")
            assert terminal.read() == "restored\n"  # criu's task is gone, and so is criu
        finally:
            shell.kill()
    shell.wait()


def hold_connections(task: Task, port: int) -> Check:
    """A connection to a child, and one to a server that is not dumped."""
    outside = socket.create_connection(("127.0.0.1", port))
    server = socket.create_server(("127.0.0.1", 0))
    near = socket.create_connection(server.getsockname())
    far, _ = server.accept()
    server.close()
    fd = os.open(task.path("file"), os.O_RDONLY)

    def child() -> Check:
        near.close()
        outside.close()
        return lambda: far.recv(100).decode()

    ask_child = task.fork(child)
    far.close()
    task.detach()

    def check() -> list[str]:
        text = os.pread(fd, 10, 0)
        near.sendall(text)
        outside.sendall(text)
        return [ask_child(), outside.recv(100).decode()]

    return check


@pytest.mark.usefixtures("inet_sockets")
def test_tcp_established(scenario: MakeScenario) -> None:
    """What is read from the mount goes on flowing into connections that were open before."""
    # No firewall keeps the connection quiet while the process is away: here nobody sends then.
    options = ["--tcp-established", "--network-lock", "skip"]
    with socket.create_server(("127.0.0.1", 0)) as server:
        held = scenario().start(hold_connections, port=server.getsockname()[1])
        peer, _ = server.accept()
    with peer:
        before = look.seen(held.pid)
        for _ in range(2):
            held.dump(*options).succeeded()
            held.restore(*options).succeeded()
            assert look.seen(held.pid) == before
            peer.sendall(b"answer")
            assert held.ask() == ["0123456789", "answer"]
            assert peer.recv(100) == b"0123456789"


def hold_lock(task: Task) -> Check:
    """A lock of a file on the mount, and a child that finds the file locked."""
    fd = os.open(task.path("file"), os.O_RDWR)
    probe = os.open(task.path("file"), os.O_RDWR)

    def child() -> Check:
        os.close(fd)

        def is_locked() -> bool:
            try:
                fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False

        return is_locked

    ask_child = task.fork(child)
    fcntl.flock(fd, fcntl.LOCK_EX)
    task.detach()
    return ask_child


@pytest.mark.covers("flock")
def test_file_locks(scenario: MakeScenario, placement: Placement) -> None:
    """Locks are dumped only when CRIU is told so, and are held anew after each restore."""
    held = scenario(placement).start(hold_lock)
    held.dump().failed("--file-locks")
    before = look.seen(held.pid)
    for _ in range(2):
        held.dump("--file-locks").succeeded()
        held.restore("--file-locks").succeeded()
        assert look.seen(held.pid) == before
        assert held.ask() is True
