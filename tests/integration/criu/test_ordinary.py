"""Ordinary processes, nothing detached: with the plugin CRIU does exactly what it does without it.

Each process is dumped twice as it runs on, without the plugin and with it, and is restored from
both images. The images and the processes must be alike, and no criu may have loaded Python.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import select
import signal
import socket
import struct
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ..conftest import MakeContainer, MakeScenario
from ..harness import look
from ..harness.agent import Check, Task, calls
from ..harness.criu import CriuRun
from ..harness.engines import ENGINES
from ..harness.placement import CONTENT, Placement
from ..harness.scenario import Scenario, difference_of, told_of_answers
from ..tasks.test_pid_namespace import new_pid_namespace

pytestmark = [
    pytest.mark.detached,  # both runs are attached already
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # pycriu's
]

CLONE_NEWUTS, CLONE_NEWIPC = 0x04000000, 0x08000000

# What differs between two dumps of one process without any plugin, by the names of fields.
UNSTEADY = {
    "dump_uptime",
    "dump_criu_run_id",
    *("tv_sec", "tv_nsec", "timestamp", "atim"),  # clocks
    *("vsec", "vusec", "vnsec"),  # what is left of timers
    "snd_wl1",  # of a TCP connection
    *("threads", "termios_locked"),  # CRIU does not set these for zombies, and terminals' masters
}


# --- What the processes hold --------------------------------------------------------------


def pipes() -> Check:
    """A pipe that is not empty."""
    end, start = os.pipe()
    os.write(start, b"first")
    return lambda: [os.write(start, b"second"), os.read(end, 100).decode()]


def unix_sockets(task: Task) -> Check:
    """Pairs with something in them, and a listener with a name."""
    pairs = [socket.socketpair(socket.AF_UNIX, kind) for kind in (1, 2, 5)]
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{task.base}/listener")
    listener.listen()
    for near, _ in pairs:
        near.send(b"first")

    def check() -> list[str]:
        client = socket.socket(socket.AF_UNIX)
        client.connect(f"{task.base}/listener")
        served, _ = listener.accept()
        served.send(b"served")
        return [far.recv(100).decode() for _, far in pairs] + [client.recv(100).decode()]

    return check


def event_fds() -> Check:
    """Fds without files: eventfd, signalfd and timerfd, watched through epoll."""
    signals, timer = calls(
        "signals = call(289, -1, struct.pack('Q', 1 << 11), 8, 0)\n"
        "timer = call(283, 1, 0)\n"
        "call(286, timer, 0, struct.pack('4q', 0, 0, 10000, 0), None)\n"
        "answer(signals, timer)"
    )
    events = os.eventfd(3)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    epoll = select.epoll()
    for fd in (events, signals, timer):
        epoll.register(fd, select.EPOLLIN)

    def check() -> list[object]:
        os.kill(os.getpid(), signal.SIGUSR2)
        ready = sorted([events, signals, timer].index(fd) for fd, _ in epoll.poll(0))
        (number,) = struct.unpack_from("I", os.read(signals, 128))
        with open(f"/proc/self/fdinfo/{timer}") as info:
            left = int(info.read().split("it_value: (")[1].split(",")[0])
        return [ready, os.eventfd_read(events), number, 0 < left <= 10000]

    return check


def terminals() -> Check:
    """Both ends of a terminal."""
    master, slave = os.openpty()

    def check() -> list[object]:
        os.write(slave, b"out")
        os.write(master, b"in\n")
        typed, shown = os.read(slave, 100), b""
        while len(shown) < 7:
            shown += os.read(master, 100)
        return [typed.decode(), shown.decode()]

    return check


def timers() -> Check:
    """The three interval timers of a process, and a POSIX timer."""
    libc = ctypes.CDLL(None, use_errno=True)
    kinds = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
    for kind in kinds:
        signal.setitimer(kind, 10000, 5)
    timer = ctypes.c_void_p()
    assert libc.timer_create(1, None, ctypes.byref(timer)) == 0
    assert libc.timer_settime(timer, 0, struct.pack("4q", 7, 0, 10000, 0), None) == 0

    def check() -> list[object]:
        left = ctypes.create_string_buffer(32)
        assert libc.timer_gettime(timer, left) == 0
        every, _, after, _ = struct.unpack("4q", left.raw)
        found = [signal.getitimer(kind) for kind in kinds]
        return [[0 < value < 10001, again] for value, again in [*found, (after, every)]]

    return check


def attached_files(task: Task) -> Check:
    """Files of a mount that stays, some of them deleted; a lock, a watch, a working directory."""
    with open(task.path("deleted"), "w") as stream:
        stream.write("deleted")
    deleted = os.open(task.path("deleted"), os.O_RDWR)
    mapped = mmap.mmap(deleted, 7)
    os.mkdir(task.path("removed"))
    removed = os.open(task.path("removed"), os.O_RDONLY)
    os.unlink(task.path("deleted"))
    os.rmdir(task.path("removed"))
    locked = os.open(task.path("other"), os.O_RDWR)
    fcntl.flock(locked, fcntl.LOCK_EX)
    fcntl.lockf(os.open(task.path("file"), os.O_RDWR), fcntl.LOCK_EX, 4, 2)
    (watch,) = calls(
        "watch = call(294, 0o4000)\n"
        f"call(254, watch, {task.path('dir')!r}.encode(), 0x100)\n"
        "answer(watch)"
    )
    path = os.open(task.path("link"), os.O_PATH | os.O_NOFOLLOW)
    null = os.open(task.path("null"), os.O_RDWR)
    os.chdir(task.path("dir"))

    def check() -> list[object]:
        mapped[0:1] = b"D"
        os.close(os.open("new", os.O_CREAT | os.O_WRONLY))
        os.unlink("new")
        event = struct.unpack_from("iIII", os.read(watch, 100))
        probe = os.open("../other", os.O_RDWR)
        free = True
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = False
        os.close(probe)
        return [
            os.pread(deleted, 100, 0).decode(),
            os.fstat(removed).st_nlink,
            event[:2],
            free,
            os.readlink("", dir_fd=path),
            os.write(null, b"gone"),
            os.getcwd().removeprefix(task.points[0]),
        ]

    return check


def family(task: Task) -> Check:
    """A zombie, and a child with which memory is shared."""
    zombie = os.fork()
    if not zombie:
        os._exit(7)
    os.waitid(os.P_PID, zombie, os.WEXITED | os.WNOWAIT)
    anonymous = mmap.mmap(-1, 4096)
    memory = os.memfd_create("memory")
    os.ftruncate(memory, 4096)
    named = mmap.mmap(memory, 4096)

    def child() -> Check:
        def write() -> bool:
            anonymous[0:5] = named[0:5] = b"child"
            return True

        return write

    ask_child = task.fork(child)

    def check() -> list[object]:
        written = ask_child()
        _, status = os.waitpid(zombie, 0)
        return [written, anonymous[0:5].decode(), os.pread(memory, 5, 0).decode(), status]

    return check


def hold_all(task: Task) -> Check:
    """All of the above in one process."""
    checks = {
        "files": attached_files(task),
        "family": family(task),
        "pipes": pipes(),
        "unix": unix_sockets(task),
        "events": event_fds(),
        "terminals": terminals(),
        "timers": timers(),
    }
    return lambda: {name: check() for name, check in checks.items()}


ALL: Mapping[str, object] = {
    "files": ["Deleted", 0, [1, 0x100], True, "file", 4, "/tree/dir"],
    "family": [True, "child", "child", 7 << 8],
    "pipes": [6, "firstsecond"],
    "unix": ["first", "first", "first", "served"],
    "events": [[0, 1], 3, 12, True],
    "terminals": ["in\n", "outin\r\n"],
    "timers": [[True, 5.0]] * 3 + [[True, 7]],
}


def hold_inet(task: Task) -> Check:
    """Datagram sockets, a listener, and both ends of a connection."""
    listener = socket.create_server(("127.0.0.1", 0))
    near = socket.create_connection(listener.getsockname())
    far, _ = listener.accept()
    near.sendall(b"first")
    one, other = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    other.bind(("127.0.0.1", 0))
    one.connect(other.getsockname())

    def check() -> list[object]:
        another = socket.create_connection(listener.getsockname())
        served, _ = listener.accept()
        served.sendall(b"served")
        one.send(b"sent")
        near.sendall(b"second")
        far.sendall(b"back")
        received = b""
        while len(received) < 11:
            received += far.recv(100)
        return [received.decode(), *(end.recv(100).decode() for end in (near, another, other))]

    return check


def hold_cgroup(task: Task, cgroup: str) -> Check:
    """A cgroup."""
    with open(f"{cgroup}/cgroup.procs", "w") as processes:
        processes.write("0")

    def check() -> str:
        with open("/proc/self/cgroup") as cgroups:
            return next(line for line in cgroups if line.startswith("0::"))

    return check


def hold_namespaces(task: Task) -> Check:
    """A container: namespaces for host name and IPC, with shared memory of System V's kind."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.shmat.restype = ctypes.c_void_p
    assert libc.unshare(CLONE_NEWUTS | CLONE_NEWIPC) == 0
    assert libc.sethostname(b"inside", 6) == 0
    segment = libc.shmget(0x123, 4096, 0o1600)
    address = libc.shmat(segment, None, 0)
    ctypes.memmove(address, b"shared", 6)
    file = os.open(task.path("file"), os.O_RDONLY)

    def check() -> list[object]:
        again = libc.shmat(libc.shmget(0x123, 4096, 0), None, 0)
        ctypes.memmove(address, b"S", 1)
        return [
            os.uname().nodename,
            ctypes.string_at(again, 6).decode(),
            os.pread(file, 100, 0).decode(),
            os.getpid(),
        ]

    return check


# --- What is compared ---------------------------------------------------------------------


def decoded(images: Path) -> dict[str, Any]:
    """What is in the images, without what no two dumps have in common.

    Of memory the names of the images alone: the kernel moves pages as it likes.
    """
    from pycriu.images import load

    found = {}
    for path in sorted(images.glob("*.img")):
        found[path.name] = ""
        if not path.name.startswith(("pages-", "pagemap-")):
            with path.open("rb") as stream:
                found[path.name] = steady(load(stream))
    return found


def steady(value: Any) -> Any:
    """A decoded image without the fields that differ each time."""
    if isinstance(value, dict):
        return {name: steady(one) for name, one in value.items() if name not in UNSTEADY}
    return [steady(one) for one in value] if isinstance(value, list) else value


class Twice:
    """A process that is dumped without the plugin and with it, and restored from both."""

    def __init__(self, held: Scenario, options: list[str]) -> None:
        self.held, self._options = held, options

    def dump(self, *, plugin: bool) -> dict[str, Any]:
        """The images of a dump that leaves the process as it is."""
        self._use(plugin)
        look.wait_until_idle(self.held.pid)
        prefix = self._watch()
        self.held.dump(*self._options, "--leave-running", plugin=plugin, prefix=prefix).succeeded()
        self._assert_loaded(plugin)
        return decoded(self.held.images)

    def restore(self, *, plugin: bool) -> tuple[Any, list[object]]:
        """What the restored process answers, and what it looks like before that."""
        self._use(plugin)
        pid_file = self.held.images / "pid"
        options = [*self._options, "--pidfile", str(pid_file)]
        self.held.restore(*options, plugin=plugin, prefix=self._watch()).succeeded()
        self._assert_loaded(plugin)
        self.held.pid = int(pid_file.read_text())
        seen = look.seen(self.held.pid)
        # a container's processes have other numbers outside of it
        looks: list[object] = [*seen.files.values(), *seen.mounts.values(), seen.runner_mounts]
        answer = self.held.ask()
        self.held.kill()
        return answer, looks

    def _use(self, plugin: bool) -> None:
        self.held.images = self.held.work / f"images-{plugin}"

    def _watch(self) -> list[str]:
        """Have the dynamic loader tell what criu and its helpers load."""
        return ["env", "LD_DEBUG=files", f"LD_DEBUG_OUTPUT={self.held.work}/loaded"]

    def _assert_loaded(self, plugin: bool) -> None:
        """The plugin was loaded if it was to be, and no Python."""
        texts = []
        for path in self.held.work.glob("loaded.*"):
            texts.append(path.read_text())
            path.unlink()
        text = "\n".join(texts)
        assert ("criu_detached.so" in text) is plugin
        assert "libc.so" in text and "libpython" not in text


def assert_same(twice: Twice, expected: object) -> None:
    """Images, answers and looks are the same with the plugin and without it."""
    images = [twice.dump(plugin=plugin) for plugin in (False, True)]
    assert images[0] == images[1], difference_of(*images)
    twice.held.kill()
    results = [twice.restore(plugin=plugin) for plugin in (False, True)]
    assert [answer for answer, _ in results] == [expected, expected]
    assert results[0][1] == results[1][1], difference_of(*(looks for _, looks in results))


def test_process(scenario: MakeScenario) -> None:
    held = scenario(attached=True).start(hold_all)
    assert_same(Twice(held, ["--file-locks"]), ALL)


@pytest.mark.usefixtures("inet_sockets")
def test_inet(scenario: MakeScenario) -> None:
    held = scenario(attached=True).start(hold_inet)
    options = ["--tcp-established", "--network-lock", "skip"]
    assert_same(Twice(held, options), ["firstsecond", "back", "served", "sent"])


def test_cgroup(scenario: MakeScenario) -> None:
    cgroup = Path(f"/sys/fs/cgroup/criu-detached-{os.getpid()}")
    cgroup.mkdir()
    try:
        held = scenario(attached=True).start(hold_cgroup, cgroup=str(cgroup))
        assert_same(Twice(held, ["--manage-cgroups=soft"]), f"0::/{cgroup.name}\n")
        held.kill()
    finally:
        cgroup.rmdir()


def test_container(scenario: MakeScenario) -> None:
    held = scenario(Placement.NAMESPACE, attached=True)
    with told_of_answers(held.ground):
        with new_pid_namespace():
            held.start(hold_namespaces)
        assert_same(Twice(held, []), ["inside", "Shared", CONTENT, 1])


# --- Containers ---------------------------------------------------------------------------


def image_names(images: Path) -> list[str]:
    """The names of CRIU's images, in a directory or in podman's archive."""
    if images.is_dir():
        return sorted(path.name for path in images.glob("*.img"))
    with tarfile.open(images) as archive:
        members = [Path(name) for name in archive.getnames()]
    return sorted(path.name for path in members if path.match("checkpoint/*.img"))


def said_by_plugin(run: CriuRun) -> list[str]:
    """What the plugin logged, without the times."""
    words = [line.partition("criu-detached: ") for line in run.succeeded().log.splitlines()]
    return [text for _, found, text in words if found]


@pytest.mark.native_only("a container takes a minute or two under emulation")
@pytest.mark.parametrize("engine", ENGINES)
def test_engine(container: MakeContainer, engine: str) -> None:
    """Checkpointed twice as it runs on, and not asked: that changes what it holds."""
    podman = engine.startswith("podman")
    pack = ["--compress=none"] if podman else []
    held = container(engine, attached=True).start(hold_all)
    images, results = {}, {}
    for plugin in (False, True):
        images[plugin] = held.images = held.work / (f"{plugin}.tar" if podman else str(plugin))
        options = ["--file-locks", "--leave-running", *pack]
        run = held.checkpoint(*options, plugin=plugin)
        assert said_by_plugin(run) == (["ready to dump"] if plugin else [])
    names = {plugin: image_names(images[plugin]) for plugin in images}
    assert names[True] == names[False] and "inventory.img" in names[True]
    assert not any(name.startswith("criu-detached") for name in names[True])
    for plugin in (False, True):
        held.kill()
        held.images = images[plugin]
        run = held.restore("--file-locks", plugin=plugin)
        assert said_by_plugin(run) == []
        assert ('Plugin "criu_detached"' in run.log) is plugin
        look.wait_until_idle(held.pid)
        results[plugin] = (held.seen(), held.ask())
    assert results[True] == results[False], difference_of(results[False], results[True])
    assert results[True][1] == ALL
