"""One process from its start through dumps and restores to its end."""

from __future__ import annotations

import difflib
import fcntl
import inspect
import json
import os
import pprint
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from . import agent, kernel, look
from .criu import CriuRun, criu, default_plugins
from .placement import Bind, Ground, Placement, mount_tmpfs, populate_tree
from .program import Program, shipped

NOBODY = 2**22 + 1  # a process id that no process can have
DEADLINE = 120.0  # seconds; a hang fails the test, a slow machine does not


def prepare_runner() -> None:
    """Once in each process that runs scenarios: mounts of its own, orphans come to it."""
    kernel.become_subreaper()
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.make_private()
    signal.signal(signal.SIGUSR1, lambda *_: None)


class Held:
    """A process that the agent runs in: it holds files and answers questions."""

    ground: Ground
    pid = 0

    def ask(self) -> Any:
        """Have the process run its check and return what it found."""
        os.kill(self.pid, signal.SIGUSR1)
        return self._answer()

    def assert_detached(self, fds: Iterable[int]) -> None:
        """The mounts of these fds are in no namespace, unless they were to stay attached."""
        for fd in fds:
            assert look.is_detached(self.pid, fd) is not self.ground.attached, f"fd {fd}"

    def _agent(self, program: Program, arguments: dict[str, Any], **settings: Any) -> list[str]:
        """The command of a process that runs the program."""
        config = {
            "base": str(self.ground.seen_base),
            "points": self.ground.points(),
            "prefixes": [bind.shape.prefix for bind in self.ground.binds],
            "attached": self.ground.attached,
            "in_trees": False,
            "arguments": arguments,
            **settings,
            **shipped(program),
        }
        command = [os.path.realpath(sys.executable), "-I", "-S", "-c", inspect.getsource(agent)]
        return [*command, json.dumps(config)]

    def _answer(self) -> Any:
        """Wait for the process to report."""
        path = self.ground.base / "result"
        wait_until(lambda: path.exists() or not look.is_running(self.pid), "an answer")
        if not path.exists():
            _, status = os.waitpid(self.pid, os.WNOHANG)
            raise AssertionError(f"no answer from {self.pid}: wait status {status:#x}")
        answer = json.loads(path.read_text())
        path.unlink()
        assert "error" not in answer, answer["error"]
        return answer["value"]


@contextmanager
def told_of_answers(ground: Ground) -> Iterator[None]:
    """A process of another namespace or machine can't signal the runner: let the kernel do it."""
    base = os.open(ground.base, os.O_RDONLY)
    fcntl.fcntl(base, fcntl.F_SETSIG, signal.SIGUSR1)
    fcntl.fcntl(base, fcntl.F_NOTIFY, fcntl.DN_RENAME | fcntl.DN_MULTISHOT)
    try:
        yield
    finally:
        os.close(base)


class Scenario(Held):
    """A process with files on bind mounts that its program unmounts lazily."""

    def __init__(
        self,
        placement: Placement = Placement.HOST,
        binds: Sequence[Bind] = (Bind(),),
        *,
        attached: bool = False,
        in_trees: bool = False,
        userns: bool = False,
        mount_source: Callable[[Path], None] = mount_tmpfs,
        populate: Callable[[Path], None] = populate_tree,
        work: Path | None = None,
        travels: bool = False,
    ) -> None:
        self.work = work_directory("criu-detached-", work)
        self.images = self.work / "images"
        self.pid = 0
        self._known: list[int] = []
        self._in_trees = in_trees  # the files are on anonymous clones of the binds
        self.ground = Ground(self.work, placement, binds, attached, mount_source, populate, userns)
        self._stack = ExitStack()
        self._runner = NOBODY if userns or travels else os.getpid()
        if self._runner == NOBODY:
            self._stack.enter_context(told_of_answers(self.ground))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._stack.close()
        self.ground.clear()
        table = Path("/proc/self/mountinfo").read_text()
        assert str(self.work) not in table, "a mount is left over; its files are not deleted"
        shutil.rmtree(self.work)

    def start(self, program: Program, **arguments: Any) -> Self:
        """Start a fresh process that runs the program and wait until it holds its files."""
        self.ground.make_source()
        command = self._agent(program, arguments, runner=self._runner, in_trees=self._in_trees)
        self.pid = _spawn(self.ground.enter, command)
        self._known = [self.pid]
        self._answer()
        return self

    def dump(
        self,
        *options: str,
        plugin: bool | None = None,
        plugins: Path | None = None,
        prefix: Sequence[str] = (),
        verbosity: int = 4,
    ) -> CriuRun:
        """Run criu dump; when it worked, the processes are gone and reaped."""
        self._known = look.tree(self.pid)
        run = criu(
            "dump",
            self.images,
            ["--tree", str(self.pid), *self.ground.dump_options(), *options],
            plugins=self._plugins(plugin, plugins),
            prefix=prefix,
            verbosity=verbosity,
        )
        if run.status == 0 and "--leave-running" not in options:
            reap(self._known)
        return run

    def restore(
        self,
        *options: str,
        plugin: bool | None = None,
        plugins: Path | None = None,
        prefix: Sequence[str] = (),
        verbosity: int = 4,
    ) -> CriuRun:
        """Run criu restore; the restored processes become this process's children."""
        pid_file = self.work / "pid"
        pid_file.unlink(missing_ok=True)
        how = ["--restore-detached", "--pidfile", str(pid_file)]
        with self._root():
            run = criu(
                "restore",
                self.images,
                [*how, *self.ground.restore_options(), *options],
                plugins=self._plugins(plugin, plugins),
                prefix=prefix,
                verbosity=verbosity,
            )
        if run.status == 0 and pid_file.exists():
            self.pid = int(pid_file.read_text())  # another one for the init of a PID namespace
        return run

    def cycle(self, *, plugin: bool | None = None) -> Self:
        """Dump and restore; everything that is seen from outside must be as before."""
        before = look.seen(self.pid)
        self.dump(plugin=plugin).succeeded()
        self.restore(plugin=plugin).succeeded()
        after = look.seen(self.pid)
        assert after == before, difference(before, after)
        return self

    def survive(self) -> None:
        """Restored as it was, or refused at dump while it lives; nothing else in its place."""
        answer = self.ask()
        run = self.dump()
        if run.status:
            run.failed("criu-detached: ")
        else:
            self.restore().succeeded()
        assert self.ask() == answer

    def _plugins(self, plugin: bool | None, directory: Path | None) -> Path | None:
        """The plugin directory for criu: by default one, unless nothing gets detached."""
        wanted = not self.ground.attached if plugin is None else plugin
        return (directory or default_plugins()) if wanted else None

    def assert_gone(self) -> None:
        """No task is left of a restore that failed; what criu killed may still be dying.

        CRIU 4.3 reads memory in a helper that a task starts. It may outlive a failed restore for
        ever, and its session keeps the task's pid in use: it is ended here.
        """
        what = "the end of tasks that a failed restore left"
        reap(self._left_alive(), what)
        helpers = look.session(self.pid)
        for pid in helpers:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        reap(helpers, what)

    def _left_alive(self) -> list[int]:
        """Those of the processes that exist, in whatever state."""
        return [pid for pid in self._known if os.path.exists(f"/proc/{pid}")]

    def kill(self) -> None:
        """End the processes and reap them."""
        if not self.pid:
            return
        if os.path.exists(f"/proc/{self.pid}"):
            self._known = look.tree(self.pid)
        alive = self._left_alive()
        for pid in alive:
            with suppress(ProcessLookupError):  # an init took it along
                os.kill(pid, signal.SIGKILL)
        reap(alive)
        self.pid = 0

    @contextmanager
    def _root(self) -> Iterator[None]:
        """The mount that criu --root needs, for as long as criu runs."""
        if not self.ground.placement.own_namespace:
            yield
            return
        self.ground.mount_root()
        try:
            yield
        finally:
            kernel.umount2(self.ground.root, kernel.MNT_DETACH)


def work_directory(prefix: str, path: Path | None = None) -> Path:
    """A new directory: by default of a name of its own, else where another machine had it."""
    if path is None:
        return Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))
    path.mkdir(mode=0o700)
    return path


def difference(before: look.Seen, after: look.Seen) -> str:
    """The lines that a restore added or took away."""
    return difference_of(asdict(before), asdict(after))


def difference_of(before: object, after: object) -> str:
    """The lines in which two things differ, as they are printed."""
    old, new = (pprint.pformat(one, width=160).splitlines() for one in (before, after))
    return "\n".join(difflib.unified_diff(old, new, "before", "after", n=0, lineterm=""))


def _spawn(enter: Callable[[], int], command: list[str]) -> int:
    """Fork a child with nothing inherited; enter runs in it before it executes the command.

    enter may return the pid of a sibling that goes on in its place, see Ground.enter.

    Before, because what is mapped must lie on the mounts of the namespace that enter makes.
    """
    failed_read, failed_write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(failed_write)
        with open(failed_read, encoding="utf-8") as stream:
            report = stream.read()
        if report.isdigit():
            os.waitpid(pid, 0)
            return int(report)
        if report:
            os.waitpid(pid, 0)
            raise AssertionError(f"the process could not be set up:\n{report}")
        return pid
    try:
        instead = enter()
        if instead:
            os.write(failed_write, str(instead).encode())
            os._exit(0)
        os.setsid()
        os.chdir("/")
        null = os.open("/dev/null", os.O_RDWR)
        for fd in range(3):
            os.dup2(null, fd)
        os.closerange(3, failed_write)
        os.closerange(failed_write + 1, 65536)
        os.execv(command[0], command)
    except BaseException:
        os.write(failed_write, traceback.format_exc().encode())
    finally:
        os._exit(1)


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait for the signals that tell of a report (SIGUSR1) and of a death (SIGCHLD)."""
    deadline = time.monotonic() + DEADLINE
    signals = {signal.SIGUSR1, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        while not condition():
            left = deadline - time.monotonic()
            assert left > 0, f"{what} did not come in {DEADLINE:.0f} s"
            signal.sigtimedwait(signals, left)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)


def reap(pids: Sequence[int], what: str = "the end of the processes") -> None:
    """Wait until these are gone: a zombie would keep its pid from being restored."""
    left = set(pids)

    def gone() -> bool:
        _reap_zombies(left)
        # The init of a PID namespace takes the others along: they are no children of the runner.
        left.intersection_update(pid for pid in list(left) if os.path.exists(f"/proc/{pid}"))
        return not left

    wait_until(gone, f"{what} {sorted(left)}")


def _reap_zombies(left: set[int] | None = None) -> None:
    """Take the status of every child that has ended."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            if left is not None:
                left.clear()
            return
        if not pid:
            return
        if left is not None:
            left.discard(pid)
