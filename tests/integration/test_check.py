"""``criu-detached check``, run as a user runs it, on builds and CRIUs that are good or broken."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .harness import kernel
from .harness.criu import default_plugins

pytestmark = pytest.mark.detached


@pytest.fixture(scope="module")
def built() -> Iterator[Path]:
    """A copy of the plugin that these tests break, and that root alone can write at first.

    A checkout may belong to a user, so the copy lies elsewhere. It is not built there, which
    takes minutes in an emulated VM: the path that is built in is overwritten with a shorter one.
    """
    old, new = default_plugins().resolve(), Path("/run/cd")
    shutil.copytree(old, new)
    try:
        for path in [new, *new.rglob("*")]:
            os.chown(path, 0, 0)
            path.chmod(path.stat().st_mode & ~0o022)
        move_built_in_path(new / "criu_detached", str(old), str(new))
        yield new
    finally:
        shutil.rmtree(new)


def move_built_in_path(parts: Path, old: str, new: str) -> None:
    """Let a copied plugin import from itself."""
    was, now = (f"{lib}/criu_detached/lib".encode("utf-32-le") for lib in (old, new))
    data = (parts / "embed.so").read_bytes()
    assert len(now) <= len(was), f"the plugin must lie at a longer path than {new}, not at {old}"
    assert data.count(was) == 1
    (parts / "embed.so").write_bytes(data.replace(was, now.ljust(len(was), b"\0")))
    launcher = parts / "criu-detached"
    launcher.write_text(launcher.read_text().replace(old, new))


class Answer:
    """What a check printed."""

    def __init__(self, built: Path, *options: str) -> None:
        command = [str(built / "criu_detached" / "criu-detached"), "check", *options]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        self.status = done.returncode
        self.text = done.stdout + done.stderr
        self.lines = {}
        for line in done.stdout.splitlines():
            state, rest = line.split(maxsplit=1)
            subject, text = rest.split(": ", 1)
            self.lines[subject.split()[0]] = (state, text)

    def failed(self, subject: str, *texts: str) -> None:
        """One line alone says FAIL, and this."""
        assert self.status == 1, self.text
        assert [name for name, line in self.lines.items() if line[0] == "FAIL"] == [subject]
        for text in texts:
            assert text in self.lines[subject][1], self.text


@contextmanager
def mode_of(path: Path, mode: int) -> Iterator[None]:
    """A file mode for a while."""
    before = path.stat().st_mode
    path.chmod(mode)
    try:
        yield
    finally:
        path.chmod(before)


def fake_criu(directory: Path, script: str) -> str:
    """A shell script that has a version as CRIU has, and otherwise runs the script."""
    path = directory / "criu"
    version = 'if [ "$1" = --version ]; then echo "Version: 4.2.1"; exit; fi'
    path.write_text(f"#!/bin/sh\n{version}\n{script}\n")
    path.chmod(0o755)
    return str(path)


def sleepers() -> list[bytes]:
    """The command lines of processes like that of the trial."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes())
        except OSError:
            continue  # it ended
    return [line for line in found if line.startswith(b"sleep\x00600")]


def state_of_machine() -> tuple[str, list[bytes], set[str]]:
    """What a check must not change."""
    temporary = set(os.listdir(tempfile.gettempdir()))
    return Path("/proc/self/mountinfo").read_text(), sleepers(), temporary


def test_good(built: Path) -> None:
    """All is well, and the machine is as it was."""
    before = state_of_machine()
    answer = Answer(built)
    assert answer.status == 0, answer.text
    subjects = ["kernel", "system", "criu", "plugin", "writers", "trial"]
    assert list(answer.lines) == subjects
    assert {state for state, _ in answer.lines.values()} == {"ok"}, answer.text
    assert str(shutil.which("criu")) in answer.lines["criu"][1]
    by_fd = "found by STATMOUNT_BY_FD" in answer.lines["kernel"][1]
    assert by_fd is kernel.has_statmount_by_fd()
    assert state_of_machine() == before


def test_criu_absent(built: Path, tmp_path: Path) -> None:
    Answer(built, "--criu", str(tmp_path / "none")).failed("criu", "install CRIU 4.1 or newer")


@pytest.mark.parametrize("part", ["criu_detached.so", "criu_detached/embed.so"])
def test_part_missing(built: Path, tmp_path: Path, part: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(built, copy)
    (copy / part).unlink()
    Answer(built, "--lib", str(copy)).failed("plugin", f"lacks {part}", "make plugin")


def test_copied(built: Path, tmp_path: Path) -> None:
    """The copy would run the original's Python part."""
    copy = tmp_path / "copy"
    shutil.copytree(built, copy)
    Answer(built, "--lib", str(copy)).failed("plugin", str(built), "make plugin")


@pytest.mark.parametrize("part", ["..", "criu_detached/lib", "criu_detached/embed.so"])
def test_writable_by_everyone(built: Path, part: str) -> None:
    path = (built / part).resolve()
    with mode_of(path, 0o777):
        Answer(built).failed("writers", f"{path} is writable by everyone", "chmod go-w")


@pytest.mark.parametrize(
    ("script", "text"),
    [
        ("", "it said nothing"),
        ("exec sleep 0", "it said nothing"),
        ("echo 'Error (criu/plugin.c:1): no'; exit 1", "Error (criu/plugin.c:1): no"),
    ],
    ids=["silent", "other", "error"],
)
def test_fake_criu(built: Path, tmp_path: Path, script: str, text: str) -> None:
    program = fake_criu(tmp_path, script)
    Answer(built, "--criu", program).failed("trial", "did not take the plugin in", text)


def test_function_missing(built: Path, tmp_path: Path) -> None:
    """A CRIU that does not export one of the functions: the real one, with it renamed."""
    program = tmp_path / "criu"
    data = Path(str(shutil.which("criu"))).read_bytes()
    assert data.count(b"\0fdstore_add\0") == 1
    program.write_bytes(data.replace(b"\0fdstore_add\0", b"\0fdstore_xxx\0"))
    program.chmod(0o755)
    Answer(built, "--criu", str(program)).failed("trial", "no function fdstore_add")


@pytest.mark.parametrize("module", ["dump", "restore"])
def test_python_part_broken(built: Path, module: str) -> None:
    package = built / "criu_detached" / "lib" / "criu_detached"
    (cached,) = (package / "__pycache__").glob(f"{module}.*.pyc")
    saved = [(path, path.read_bytes()) for path in (package / f"{module}.py", cached)]
    cached.unlink()
    (package / f"{module}.py").write_text("raise RuntimeError('broken')\n")
    try:
        Answer(built).failed("trial", "broken")
    finally:
        for path, content in saved:
            path.write_bytes(content)
