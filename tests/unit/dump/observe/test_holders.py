"""What other processes hold on a mount."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from criu_detached import kernel
from criu_detached.dump.observe import holders, trees
from criu_detached.dump.observe import machine as machine_module
from criu_detached.dump.observe.machine import Look, Machine, UnsureError
from criu_detached.dump.observe.processes import (
    files_of,
    held_directories,
    held_files,
    holding_processes,
    is_in_tree_of_others,
    is_tree_held,
)
from criu_detached.kernel import walk
from criu_detached.kernel.walk import MountTable, Seen

from ... import support

HOLD = "import os, sys; {}; print(flush=True); sys.stdin.read()"


@contextmanager
def process(code: str, *fds: int) -> Iterator[int]:
    """A process that does something, and then waits; its pid."""
    command = [sys.executable, "-c", HOLD.format(code)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, pass_fds=fds) as running:
        assert running.stdout is not None
        running.stdout.readline()
        yield running.pid


def machine_of(*pids: int) -> Machine:
    """The machine around a dump of some processes."""
    machine = Machine()
    machine.tasks = list(pids)
    return machine


def outside_holder(dev: int, *pids: int) -> str | None:
    """Who else holds a filesystem, looked at anew."""
    return holders.outside_holder(machine_of(*pids), dev)


def attached_mount(dev: int) -> str | None:
    """Where it is mounted, likewise."""
    return holders.attached_mount(machine_of(), dev)


def links(mnt_id: int, *pids: int) -> list[str]:
    """The links of the files that are found."""
    held = held_files(machine_of(*pids), mnt_id)
    return [os.readlink(f"/proc/self/fd/{fd}") for fd in held]


def test_held_files(tmp_path: Path) -> None:
    """Open files and the working directory, of this mount alone."""
    (tmp_path / "source" / "dir").mkdir(parents=True)
    (tmp_path / "source" / "file").write_text("content")
    (tmp_path / "mnt").mkdir()
    with support.detached(tmp_path / "mnt", tmp_path / "source") as root:
        mnt_id = kernel.fstat(root).mnt_id
        assert links(mnt_id) == []  # what this process holds does not count
        held = f"os.chdir('/proc/{os.getpid()}/fd/{root}/dir'); os.open('../file', 0)"
        before = support.open_fds()
        with process(held) as pid, process("pass"):
            assert sorted(links(mnt_id)) == sorted(links(mnt_id, pid)) == ["/dir", "/file"]
            assert holding_processes(machine_of(), mnt_id) == [pid]
            assert holding_processes(machine_of(pid), mnt_id) == [pid]
            attached = support.mount_of(tmp_path).mnt_id
            assert not {"/dir", "/file"} & set(links(attached))
        assert links(mnt_id) == []
        assert support.open_fds() == before


def test_deleted_files_are_told(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").touch()
    (tmp_path / "mnt").mkdir()
    with support.detached(tmp_path / "mnt", tmp_path / "source") as root:
        fd = os.open("file", os.O_RDONLY, dir_fd=root)
        (tmp_path / "source" / "file").unlink()
        with process("pass", fd):
            assert links(kernel.fstat(root).mnt_id) == ["/file (deleted)"]
        os.close(fd)


def test_walk_that_is_left_early(tmp_path: Path) -> None:
    """The first is enough for a dump; its fd is closed all the same, and others are left alone."""
    (tmp_path / "mnt").mkdir()
    with support.detached(tmp_path / "mnt", tmp_path) as held, process("pass", held) as pid:
        machine = machine_of(pid)
        before = set(support.open_fds())
        walk = held_files(machine, kernel.fstat(held).mnt_id)
        assert next(walk) not in before
        walk.close()  # type: ignore[attr-defined]
        assert set(support.open_fds()) == before
        assert machine._look is None


def test_directories(tmp_path: Path) -> None:
    """One of each mount that is attached nowhere and not known, of dumped processes."""
    for name in ("source/one", "source/two", "mnt"):
        (tmp_path / name).mkdir(parents=True)
    with support.detached(tmp_path / "mnt", tmp_path / "source") as root:
        mnt_id = kernel.fstat(root).mnt_id
        opened = [f"os.open('/proc/{os.getpid()}/fd/{root}/{name}', 0)" for name in ("one", "two")]
        with process("; ".join(opened)) as pid:
            known: set[int] = set()
            found = [kernel.fstat(fd).mnt_id for fd in held_directories(machine_of(pid), known)]
            assert found == [mnt_id] and known == {mnt_id}
            assert not list(held_directories(machine_of(pid), {mnt_id}))
            assert not list(held_directories(machine_of(), set()))


def test_tree_fd(tmp_path: Path) -> None:
    """An O_PATH fd of the root without another flag, in a process that is dumped."""
    (tmp_path / "source" / "dir").mkdir(parents=True)
    (tmp_path / "mnt").mkdir()
    with support.detached(tmp_path / "mnt", tmp_path / "source") as root:
        mnt_id = kernel.fstat(root).mnt_id
        path = f"/proc/{os.getpid()}/fd/{root}"
        other = f"os.chdir('{path}'); os.open('{path}', 0); os.open('{path}/dir', os.O_PATH)"
        other += f"; os.open('{path}/.', os.O_PATH | os.O_DIRECTORY)"
        with process(other) as pid:
            assert not is_tree_held(machine_of(pid), mnt_id)
        with process(f"os.open('{path}/.', os.O_PATH)") as pid:
            assert is_tree_held(machine_of(pid), mnt_id)
            assert not is_tree_held(machine_of(), mnt_id)


@contextmanager
def own_filesystem(path: Path) -> Iterator[int]:
    """A tmpfs with two files; the device of its superblock."""
    path.mkdir()
    with support.mounted(path, "-t", "tmpfs", "held"):
        for name in ("one", "two"):
            (path / name).write_text("content")
        yield path.stat().st_dev


MAPPED = "import mmap; fd = os.open({!r}, 0); m = mmap.mmap(fd, 4, prot=1, trackfd=False)"


def names_of(dev: int, *pids: int) -> list[str]:
    """The names of the files of a filesystem that are found."""
    found = files_of(machine_of(*pids), dev)
    return sorted(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")) for fd in found)


def test_files_of_a_filesystem(tmp_path: Path) -> None:
    """Those of dumped processes that are mapped and not open as well, and those of sockets."""
    with own_filesystem(tmp_path / "fs") as dev:
        mapped = MAPPED.format(str(tmp_path / "fs" / "one")) + "; os.close(fd)"
        bound = f"import socket; s = socket.socket(1); s.bind({str(tmp_path / 'fs' / 'socket')!r})"
        code = f"{mapped}; {bound}; os.chdir({str(tmp_path / 'fs')!r}); os.open('two', 0)"
        with process(code) as pid:
            before = support.open_fds()
            assert names_of(dev, pid) == ["fs", "one", "socket", "two"]
            assert names_of(dev) == []
            assert support.open_fds() == before


@contextmanager
def sole(path: Path, code: str) -> Iterator[tuple[int, int]]:
    """The device of a tmpfs that is mounted nowhere any more, and a process that did something."""
    with ExitStack() as stack:
        with own_filesystem(path) as dev:
            held = os.open(path, os.O_PATH)  # it lasts longer than the process
            stack.callback(os.close, held)
            pid = stack.enter_context(process(code))
        yield dev, pid


BOUND = "import socket; s = socket.socket(1); s.bind('{fs}/socket')"
LISTENING = "s.listen(); c = socket.socket(1); c.connect(s.getsockname()); s = s.accept()"
HOLDERS = {
    "nothing": "pass",
    "fd": "os.open('{fs}/one', 0)",
    "directory": "os.open('{fs}', os.O_PATH)",
    "cwd": "os.chdir('{fs}')",
    "root": "os.chroot('{fs}')",
    "mapping": MAPPED.format("{fs}/one") + "; os.close(fd)",
    "socket": BOUND,
    "deleted socket": BOUND + "; os.unlink(s.getsockname())",
    "accepted socket": f"{BOUND}; {LISTENING}",
    "socket in flight": f"{BOUND}; p = socket.socketpair();"
    " socket.send_fds(p[0], [b'x'], [s.fileno()]); s.close()",
}


@pytest.mark.parametrize("what", HOLDERS)
def test_outside_holder(tmp_path: Path, what: str) -> None:
    code = HOLDERS[what].format(fs=tmp_path / "fs")
    with sole(tmp_path / "fs", code) as (dev, pid), process("pass"):
        before = support.open_fds()
        found = outside_holder(dev)
        assert support.open_fds() == before
        if what == "socket in flight":
            assert found is not None and "which no process shows" in found
        else:
            assert found == (None if what == "nothing" else f"process {pid}")
            assert outside_holder(dev, pid) is None
        if "socket" in what and "flight" not in what:
            [name] = names_of(dev, pid)
            assert name.startswith("socket")


def test_executable(tmp_path: Path) -> None:
    held = tmp_path / "fs"
    code = "import shutil, subprocess; shutil.copy2('/usr/bin/sleep', '{0}/program');"
    code += "subprocess.Popen(['{0}/program', 'infinity']); time = __import__('time').sleep(0.3)"
    with sole(held, code.format(held)) as (dev, pid):
        found = outside_holder(dev)
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        assert found == f"process {children[0]}"
        os.kill(int(children[0]), signal.SIGKILL)


# A thread that does something by itself, before the main thread goes on.
THREAD = (
    "import ctypes, socket, threading; done = threading.Event(); "
    "work = lambda: (os.unshare({unshared}), {work}, done.set(), os.read(0, 1), os._exit(0)); "
    "threading.Thread(target=work).start(); done.wait(); {main}"
)
MAIN_ENDS = "print(flush=True); ctypes.CDLL(None).syscall(60, 0)"


@pytest.mark.parametrize(
    ("unshared", "work", "main"),
    [
        (0x200, "os.chdir({path!r})", "pass"),  # CLONE_FS
        (0x200, "os.chroot({path!r})", "pass"),
        (0x400, "os.open({path!r}, 0)", "pass"),  # CLONE_FILES
        (0x400, "globals().update(s=socket.socket(1)), s.bind({path!r} + '/s')", "pass"),
        (0, "os.open({path!r}, 0)", MAIN_ENDS),
    ],
    ids=["cwd", "root", "fd", "socket", "main thread ended"],
)
def test_thread_of_an_outside_holder(tmp_path: Path, unshared: int, work: str, main: str) -> None:
    """It may have what the main thread has not."""
    work = work.format(path=str(tmp_path / "fs"))
    code = THREAD.format(unshared=unshared, work=work, main=main)
    with sole(tmp_path / "fs", code) as (dev, pid):
        before = support.open_fds()
        found = outside_holder(dev)
        assert found is not None and re.fullmatch(rf"thread \d+ of process {pid}", found)
        assert support.open_fds() == before


# --- Who comes and goes -----------------------------------------------------------------------


CHAIN = """
import os, sys, time
while True:
    time.sleep({seconds})
    if os.path.exists({stop!r}):
        os._exit(0)
    if os.fork():
        os._exit(0)
"""


@pytest.mark.parametrize("seconds", [0.001, 0.03])
def test_chain(tmp_path: Path, seconds: float) -> None:
    """Each forks the next and ends: it is never the same process, and always one."""
    stop = tmp_path / "stop"
    chain = CHAIN.format(seconds=seconds, stop=str(stop))
    code = f"fd = os.open('{tmp_path}/fs/one', 0); os.fork() or exec({chain!r})"
    with sole(tmp_path / "fs", f"{code}; os.close(fd)") as (dev, _):
        try:
            for _ in range(5):
                assert re.fullmatch(r"process \d+", outside_holder(dev) or "")
        finally:
            stop.touch()


def test_who_only_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who has a file for a moment, as another dump has."""
    code = f"fd = os.open('{tmp_path}/fs/one', 0); import signal;"
    code += "signal.signal(signal.SIGUSR1, lambda *_: os.close(fd))"
    with sole(tmp_path / "fs", code) as (dev, pid):
        slept: list[float] = []
        monkeypatch.setattr(time, "sleep", let_go_in(slept, pid))
        assert outside_holder(dev) is None
        assert len(slept) == 3


def let_go_in(slept: list[float], pid: int) -> Callable[[float], None]:
    """At the first pause a process closes what it has."""

    def sleep(seconds: float) -> None:
        if not slept:
            os.kill(pid, signal.SIGUSR1)
            while os.path.exists(f"/proc/{pid}/fd/3"):
                os.sched_yield()
        slept.append(seconds)

    return sleep


def test_machine_is_looked_at_once(tmp_path: Path) -> None:
    """Whatever is asked, and for how many filesystems."""
    with ExitStack() as stack:
        held = [stack.enter_context(sole(tmp_path / str(n), "pass")) for n in range(5)]
        machine = machine_of(*(pid for _, pid in held))
        looks = []
        real = machine.look_again
        machine.look_again = lambda: looks.append(1) or real()  # type: ignore[method-assign, func-returns-value]
        for dev, _ in held:
            assert holders.attached_mount(machine, dev) is None
            assert holders.outside_holder(machine, dev) is None
        assert looks == [1]


# --- What cannot be looked at ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (errno.EACCES, "Permission denied"),
        (errno.EMFILE, "Too many open files"),
        (errno.ENFILE, "Too many open files in system"),
        (errno.ENOMEM, "Cannot allocate memory"),
        (errno.EIO, "Input/output error"),
        (errno.ETIMEDOUT, "does not answer"),
    ],
)
@pytest.mark.parametrize("what", [walk.FD, walk.CWD, walk.ALL_MAPPINGS, walk.WHOLE_TASK])
def test_a_look_that_fails(tmp_path: Path, error: int, said: str, what: int) -> None:
    """Whatever it is, it does not say that the process has nothing."""
    with sole(tmp_path / "fs", "pass") as (dev, pid):
        machine = machine_of(pid)
        failing(machine, Failure(error, what))
        with pytest.raises(UnsureError, match=f"process 12345.*{said}"):
            holders.outside_holder(machine, dev)


def failing(machine: Machine, failure: Seen) -> None:
    """Whenever the others are looked at, something cannot be."""
    real = machine.look_again

    def look_again() -> Look:
        look = real()
        look.failures = lambda: iter([failure])  # type: ignore[method-assign]
        return look

    machine.look_again = look_again  # type: ignore[method-assign]


class Failure(Seen):
    """What could not be looked at."""

    def __init__(self, error: int, what: int) -> None:
        self.pid = self.tid = 12345
        self.error, self.what, self.number, self.gone, self.mnt_id = error, what, 7, 0, 0


def test_without_a_privilege(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing is named; init counts then, too."""
    with sole(tmp_path / "fs", "pass") as (dev, pid):
        machine = machine_of(pid)
        failure = Failure(errno.EACCES, walk.WHOLE_TASK)
        failure.pid = failure.tid = 1
        failing(machine, failure)
        assert holders.outside_holder(machine, dev) is None
        monkeypatch.setattr(machine_module, "_has_cap_sys_ptrace", lambda: False)
        with pytest.raises(UnsureError, match=r"process 1 .* criu has no CAP_SYS_PTRACE"):
            holders.outside_holder(machine, dev)


def test_a_look_that_fails_once(tmp_path: Path) -> None:
    """Who is about to begin or to end may not be looked at just now."""
    with sole(tmp_path / "fs", "pass") as (dev, pid):
        machine = machine_of(pid)
        failure = Failure(errno.EACCES, walk.WHOLE_TASK)
        machine.others.failures = lambda: iter([failure])  # type: ignore[method-assign]
        assert holders.outside_holder(machine, dev) is None


def test_hidden_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with sole(tmp_path / "fs", "pass") as (dev, pid):
        machine = machine_of(pid)
        monkeypatch.setattr(machine_module, "_hides_processes", lambda: True)
        assert holders.outside_holder(machine, dev) is None
        monkeypatch.setattr(machine_module, "_has_cap_sys_ptrace", lambda: False)
        with pytest.raises(UnsureError, match="hidepid"):
            holders.outside_holder(machine, dev)


def test_pid_namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with sole(tmp_path / "fs", "pass") as (dev, pid):
        monkeypatch.setattr(machine_module, "_FIRST_PID_NS", 1)
        with pytest.raises(UnsureError, match="PID namespace"):
            outside_holder(dev, pid)


# --- Mounts -----------------------------------------------------------------------------------


def test_namespace_of_a_thread(tmp_path: Path) -> None:
    """It has what is mounted nowhere else."""
    with own_filesystem(tmp_path / "fs") as dev:
        code = THREAD.format(unshared=0x20000, work="0", main="pass")  # CLONE_NEWNS
        running = process(code)
        pid = running.__enter__()
    try:
        found = attached_mount(dev)
        assert found is not None and "in the mount namespace of process" in found
        assert not found.endswith(f" {pid}")
    finally:
        running.__exit__(None, None, None)
    assert attached_mount(dev) is None


@pytest.mark.parametrize("walks", [True, False])
def test_attached_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, walks: bool) -> None:
    """By a walk over the namespaces, or by the mountinfo of all processes."""
    if not walks:
        monkeypatch.setattr(MountTable, "read", no_walk)
    with own_filesystem(tmp_path / "fs") as dev:
        found = attached_mount(dev)
        assert found == f"{tmp_path}/fs where criu runs"
        machine = machine_of()
        assert holders.attached_mount(machine, dev) == found
    assert attached_mount(dev) is None
    # That it was mounted when the machine was looked at does not count.
    assert holders.attached_mount(machine, dev) is None


def no_walk(*_: object) -> MountTable:
    raise OSError(errno.EPERM, "in a PID namespace")


def test_mounted_meanwhile(tmp_path: Path) -> None:
    """Who mounts it while the processes are looked at, and lets go of it."""
    with ExitStack() as stack:
        with own_filesystem(tmp_path / "fs") as dev, support.opened(tmp_path / "fs") as fd:
            tree = stack.enter_context(support.clone_mount(fd))
        machine = machine_of()
        assert holders.attached_mount(machine, dev) is None
        target = os.open(tmp_path / "fs", os.O_PATH)
        kernel.attach(tree, target)
        os.close(target)
        assert "made just now" in str(holders.outside_holder(machine, dev))
        subprocess.run(["umount", "--lazy", tmp_path / "fs"], check=True)


def test_holder_of_a_tree(tmp_path: Path) -> None:
    """A process may have no file of a filesystem, and one of a tree that it is mounted in."""
    (tmp_path / "tree" / "dir" / "child").mkdir(parents=True)
    with ExitStack() as stack:
        with own_filesystem(tmp_path / "fs") as dev:
            with support.mounted(
                tmp_path / "tree" / "dir" / "child", "--bind", str(tmp_path / "fs")
            ):
                flags = kernel.OPEN_TREE_CLONE | kernel.OPEN_TREE_CLOEXEC | 0x8000
                tree = kernel.open_tree(-100, os.fsencode(tmp_path / "tree"), flags)
            stack.enter_context(tree)
        if not trees.view(tree):
            pytest.skip("this kernel (before 6.15) clones no anonymous mount")
        before = support.open_fds()
        assert outside_holder(dev) is None
        other = os.open("dir", os.O_PATH, dir_fd=tree)
        with process("pass", other) as pid:
            assert outside_holder(dev) == f"process {pid}"
            machine = machine_of()
            mnt_id = kernel.fstat(other).mnt_id
            assert is_in_tree_of_others(machine, mnt_id)
            assert not is_in_tree_of_others(machine, kernel.glance("/").mnt_id)
        os.close(other)
        assert outside_holder(dev) is None
        assert support.open_fds() == before
