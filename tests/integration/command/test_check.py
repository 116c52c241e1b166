"""``criu-detached check``, run as a user runs it, on builds and CRIUs that are good or broken."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import _cffi_backend
import pytest

from ..harness import kernel
from ..harness.criu import default_plugins

pytestmark = pytest.mark.detached


@pytest.fixture(scope="module")
def built() -> Iterator[Path]:
    """A copy of the plugin that these tests break, and that root alone can write at first.

    A checkout may belong to a user, so the copy lies elsewhere.
    """
    new = Path("/run/cd")
    shutil.copytree(default_plugins(), new)
    try:
        for path in [new, *new.rglob("*")]:
            os.chown(path, 0, 0)
            path.chmod(path.stat().st_mode & ~0o022)
        yield new
    finally:
        shutil.rmtree(new)


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
    runtimes = ["runc", "crun", "podman"]
    assert list(answer.lines) == [*subjects, *runtimes, "network"]
    for name in runtimes:
        assert "does not load the plugin: it is not in /usr/lib/criu" in answer.lines[name][1]
    expected = dict.fromkeys(subjects, "ok")
    if not kernel.walks_namespaces():
        expected["kernel"] = "warn"
        assert "the mountinfo of every process" in answer.lines["kernel"][1]
    assert {name: answer.lines[name][0] for name in subjects} == expected, answer.text
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
    """A module is missing among those that are frozen."""
    with replaced(built / "criu_detached/embed.so", f"criu_detached.{module}\0"):
        Answer(built).failed("trial", f"No module named 'criu_detached.{module}'")


def test_linked_module_missing(built: Path) -> None:
    """For instance, the cffi package was removed."""
    with replaced(built / "criu_detached/embed.so", f"{_cffi_backend.__file__}\0"):
        Answer(built).failed("trial", "cannot open shared object file")


@contextmanager
def replaced(path: Path, text: str) -> Iterator[None]:
    """Have another name in the place of one in a binary file."""
    saved = path.read_bytes()
    assert saved.count(text.encode()) == 1
    path.write_bytes(saved.replace(text.encode(), text.replace("_", "-").encode()))
    try:
        yield
    finally:
        path.write_bytes(saved)


def test_reader_ends(built: Path) -> None:
    """As with ``criu-detached check | head``."""
    read, write = os.pipe()
    os.close(read)
    command = [str(built / "criu_detached" / "criu-detached"), "check"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (-signal.SIGPIPE, b"")
