"""When the plugin itself is broken, a dump fails and the task lives; nothing passes for success."""

from __future__ import annotations

import marshal
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "plugin"))

from embed import freeze

from ..conftest import MakeScenario
from ..harness import kernel, look
from ..harness.agent import Check, Task
from ..harness.criu import default_plugins
from ..harness.placement import CONTENT, Placement
from ..harness.programs import hold_file

pytestmark = pytest.mark.detached


class Breaker:
    """Covers files of the plugin with others."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._covered: list[Path] = []

    def cover(self, path: Path, content: bytes | None) -> None:
        """Let path have this content, or be an empty directory."""
        cover = self._scratch / f"cover{len(self._covered)}"
        if content is None:
            cover.mkdir()
        else:
            cover.write_bytes(content)
        kernel.bind(cover, path)
        self._covered.append(path)

    def module(self, name: str, change: Callable[[str], str]) -> None:
        """Change one of the plugin's Python modules: its code in embed.so is replaced."""
        source = freeze.modules()[f"criu_detached.{name}"]
        embedded = default_plugins() / "criu_detached/embed.so"
        text = change(source.read_text())
        assert text != source.read_text(), f"{source}: what is to be changed is not there"
        changed = marshal.loads(freeze.code_of(text.encode(), freeze.shown_path(source)))
        code = marshal.dumps(without_lines(changed))  # it has to fit where the old one was
        start, size = symbol(embedded, f"code_criu_detached_{name.replace('.', '_')}")
        data = embedded.read_bytes()
        assert len(code) <= size and data[start] & 0x7F == ord("c")  # TYPE_CODE (marshal.c)
        self.cover(embedded, data[:start] + code.ljust(size, b"\0") + data[start + size :])

    def mend(self) -> None:
        """Take the covers away."""
        while self._covered:
            kernel.umount2(self._covered.pop())


def without_lines(code: CodeType) -> CodeType:
    """Code that does not know its line numbers."""
    parts = (without_lines(part) if isinstance(part, CodeType) else part for part in code.co_consts)
    return code.replace(co_linetable=b"", co_consts=tuple(parts))


def symbol(file: Path, name: str) -> tuple[int, int]:
    """Offset and size of constant data; such sections lie in a file as in memory."""
    listing = subprocess.run(["nm", "-S", str(file)], check=True, capture_output=True, text=True)
    (found,) = (line for line in listing.stdout.splitlines() if line.endswith(f" {name}"))
    start, size, *_ = found.split()
    return int(start, 16), int(size, 16)


@pytest.fixture
def breaker(tmp_path: Path) -> Iterator[Breaker]:
    """Breaks the plugin for one test."""
    made = Breaker(tmp_path)
    yield made
    made.mend()


@pytest.mark.parametrize(
    "broken",
    ["raise RuntimeError('broken')", "import no_such_module"],
    ids=["raise", "import"],
)
def test_import_fails(scenario: MakeScenario, breaker: Breaker, broken: str) -> None:
    held = scenario().start(hold_file)
    breaker.module("dump.dump", lambda text: f"{text}\n{broken}\n")
    held.dump().failed("criu-detached")
    assert look.is_running(held.pid)
    assert held.ask() == CONTENT


def all_raise(text: str) -> str:
    """A module's text, with each of its functions replaced by one that raises."""
    names = re.findall(r"^def (\w+)\(", text, re.MULTILINE)
    broken = "def _broken(*_, **__):\n    return 1 // 0\n\n"
    return "\n".join([text, broken, *(f"{name} = _broken" for name in names)])


def test_exception_in_dump(scenario: MakeScenario, breaker: Breaker) -> None:
    """Any exception where a file is recorded: the traceback is in CRIU's log."""
    held = scenario().start(hold_file)
    breaker.module("dump.describe.search", all_raise)
    run = held.dump().failed("criu-detached")
    assert "ZeroDivisionError" in run.log, run.report()
    assert held.ask() == CONTENT
    breaker.mend()
    held.cycle()


def test_python_missing(scenario: MakeScenario, breaker: Breaker) -> None:
    """The shim is there, but not what it loads when it meets a detached file."""
    held = scenario().start(hold_file)
    for directory in (path for path in default_plugins().iterdir() if path.is_dir()):
        breaker.cover(directory, None)
    held.dump().failed("criu-detached")
    assert held.ask() == CONTENT


@pytest.mark.parametrize(
    "change", [all_raise, "{}\nraise OSError\n".format], ids=["call", "import"]
)
def test_exception_in_restore(
    scenario: MakeScenario,
    placement: Placement,
    breaker: Breaker,
    change: Callable[[str], str],
) -> None:
    """Where the source is in a namespace, most of the work is done in the restored task."""
    held = scenario(placement).start(hold_file)
    held.dump().succeeded()
    breaker.module("restore.realise", change)
    held.restore().failed("criu-detached")
    held.assert_gone()
    breaker.mend()
    held.restore().succeeded()
    assert held.ask() == CONTENT


def hold_socket(task: Task) -> Check:
    """A socket that listens."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(task.path("socket"))
    server.listen()
    task.detach()
    return server.getsockname


def test_exception_after_a_bind(scenario: MakeScenario, breaker: Breaker) -> None:
    """The last thing that is done for a socket: CRIU does not ask how it went."""
    held = scenario().start(hold_socket)
    held.dump().succeeded()
    breaker.module(
        "restore.sockets", lambda text: text.replace("_attributes.get(number)", '_attributes[""]')
    )
    run = held.restore().failed("criu-detached: KeyError")
    assert "can't give a socket's file" in run.log, run.report()
    held.assert_gone()
    breaker.mend()
    held.restore().succeeded()
    held.ask()


def hold_many(task: Task) -> Check:
    """More files than are recorded one by one."""
    fds = [os.open(task.path(f"many{n}"), os.O_CREAT | os.O_RDWR, 0o600) for n in range(100)]
    task.detach()
    return lambda: len([os.fstat(fd) for fd in fds])


def test_last_records_fail(scenario: MakeScenario, breaker: Breaker) -> None:
    """The end of the record file cannot be written, when all files are dumped already."""
    held = scenario().start(hold_many)
    breaker.module(
        "dump.writing",
        lambda text: text.replace("writer.flush()", "raise DetachedError('full')"),
    )
    held.dump().failed("criu-detached: full")
    assert look.is_running(held.pid)
    assert held.ask() == 100
    breaker.mend()
    held.cycle()
    assert held.ask() == 100
