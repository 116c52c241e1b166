"""A directory in which the demo carries out shell commands, each shown before it runs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

from demo.telling import Mounts, detached_files, note, table
from tests.integration.harness import kernel, look
from tests.integration.harness.criu import default_plugins
from tests.integration.harness.scenario import reap

# What every criu of the demo is told. Groups of processes are the machine's own matter.
CRIU = "--images-dir images --manage-cgroups=ignore"
HOLDER = f"python3 {Path(__file__).with_name('holder.py')}"
PATIENCE = 60.0  # seconds; a hang fails the demo, a slow machine does not


class Stage:
    """One part of the demo; its processes, mounts and files are gone afterwards."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="demo-", dir="/tmp"))
        self.path.chmod(0o755)
        self._environment = {**os.environ, "PLUGINS": str(default_plugins())}
        self._functions = ""
        self._pids: set[int] = set()
        self.pid = 0

    def __enter__(self) -> Self:
        self.show(f"cd {self.path}; PLUGINS={default_plugins()}")
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self._pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        # What an engine leaves in the background would write into the directory again.
        wait_until(_have_no_child, "the end of what the commands left behind")
        text = Path("/proc/self/mountinfo").read_text()
        points = [line.split(" ")[4] for line in text.splitlines()]
        for point in reversed([point for point in points if point.startswith(f"{self.path}/")]):
            kernel.umount2(Path(point), kernel.MNT_DETACH)
        shutil.rmtree(self.path)

    def show(self, command: str) -> None:
        """Print a command as a reader types it."""
        print(f"  $ {command}")

    def define(self, function: str) -> None:
        """Show a function of the shell, which the commands after it may use."""
        self.show(function)
        self._functions += f"{function}\n"

    def run(self, command: str) -> str:
        """Show a command and run it; it has to work. Returns what it printed."""
        self.show(command)
        status, output = self._call(command)
        assert status == 0, f"status {status}: {output}"
        return output

    def fail(self, command: str, error: str) -> None:
        """Show and run a command that has to fail with this error, which is printed."""
        self.show(command)
        status, output = self._call(command)
        assert status != 0, f"it was expected to fail: {output}"
        lines = [line for line in output.splitlines() if error in line]
        assert lines, f"no line says {error!r}: {output}"
        note(lines[0].strip())

    def start(self, command: str) -> int:
        """Show and run a command that prints the id of the process that it leaves behind."""
        self.show(f"PID=$({command})")
        status, output = self._call(command)
        assert status == 0, f"status {status}: {output}"
        return self.follow(int(output))

    def follow(self, pid: int) -> int:
        """Make a process the one that $PID stands for."""
        self.pid = pid
        self._environment["PID"] = str(pid)
        self._pids.update(look.tree(pid))
        return pid

    def dump(self, *options: str) -> None:
        """Dump the process, which is gone then."""
        command = " ".join(["criu dump --lib $PLUGINS --tree $PID", CRIU, *options])
        family = look.tree(self.pid)
        seconds = self._timed(command)
        reap(family)
        note(f"dumped in {seconds * 1000:.0f} ms; process {self.pid} is gone")

    def restore(self, before: Mounts, *options: str) -> None:
        """Restore the process, and compare what it holds with what it held before the dump."""
        command = " ".join(["criu restore --lib $PLUGINS --restore-detached", CRIU, *options])
        seconds = self._timed(command)
        self.follow(self.pid)
        note(f"restored in {seconds * 1000:.0f} ms as process {self.pid}")
        table(before, detached_files(self.pid))

    def _timed(self, command: str) -> float:
        started = time.monotonic()
        self.run(command)
        return time.monotonic() - started

    def _call(self, command: str) -> tuple[int, str]:
        """Run a command of the shell; what it leaves behind must not hold its output open."""
        with tempfile.TemporaryFile("w+", dir="/tmp") as output:
            done = subprocess.run(
                ["bash", "-c", self._functions + command],
                cwd=self.path,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            )
            output.seek(0)
            return done.returncode, output.read()


def _have_no_child() -> bool:
    """Whether all that descends from the demo has ended; it is reaped."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
        return False
    return True


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that another process does."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come in {PATIENCE:.0f} s"
        time.sleep(0.01)
