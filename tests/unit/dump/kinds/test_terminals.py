"""Terminals that are refused at dump, or left to CRIU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from criu_detached import kernel, paths
from criu_detached.dump.kinds import terminals
from criu_detached.dump.kinds.terminals import is_left_to_shell_job, refuse_terminal
from criu_detached.dump.observe.machine import Machine
from criu_detached.errors import DetachedError
from criu_detached.filesystems import types

from ... import support


class Ends:
    """Terminals of this process, of which all or some are dumped."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.dumped: list[int] = []
        self.open_too: list[int] = []
        own = os.getpid()
        monkeypatch.setattr(
            terminals, "dumped_fds", lambda _: iter((own, str(fd)) for fd in self.dumped)
        )

    def pair(self, devpts: Path) -> tuple[int, int]:
        """A new terminal: master and slave."""
        master = os.open(devpts / "ptmx", os.O_RDWR | os.O_NOCTTY)
        slave = os.open(devpts / support.unlock_terminal(master), os.O_RDWR | os.O_NOCTTY)
        self.open_too += [master, slave]
        return master, slave


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ends]:
    """Terminals, closed after the test."""
    made = Ends(monkeypatch)
    yield made
    for fd in made.open_too:
        os.close(fd)


@pytest.fixture
def devpts(tmp_path: Path) -> Iterator[Path]:
    """An instance of devpts."""
    point = tmp_path / "devpts"
    point.mkdir()
    with support.mounted(point, "-t", "devpts", "-o", "ptmxmode=0666", "devpts"):
        yield point


def test_left_to_shell_job(ends: Ends, devpts: Path) -> None:
    """A slave whose master is not dumped, and nothing else."""
    master, slave = ends.pair(devpts)
    ends.dumped = [slave]
    assert is_left_to_shell_job(kernel.fstat(slave), Machine())
    assert not is_left_to_shell_job(kernel.fstat(master), Machine())
    ends.dumped = [slave, master]
    assert not is_left_to_shell_job(kernel.fstat(slave), Machine())
    ends.open_too.remove(master)
    os.close(master)
    ends.dumped = [slave]
    assert not is_left_to_shell_job(kernel.fstat(slave), Machine())


def test_refused_places(ends: Ends, devpts: Path) -> None:
    master, slave = ends.pair(devpts)
    ends.dumped = [master, slave]
    for fd, path in [(master, b"ptmx"), (slave, b"0")]:
        facts = kernel.fstat(fd)
        refuse_terminal(path, facts, types.DEVPTS, Machine())
        with pytest.raises(DetachedError, match="mounted by itself"):
            refuse_terminal(paths.ROOT, facts, types.DEVPTS, Machine())
        with pytest.raises(DetachedError, match="outside of devpts"):
            refuse_terminal(path, facts, types.TMPFS, Machine())


def test_two_of_one_number(ends: Ends, devpts: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with support.mounted(other, "-t", "devpts", "-o", "ptmxmode=0666", "devpts"):
        ends.dumped = [*ends.pair(devpts), *ends.pair(devpts)]
        refuse_terminal(b"ptmx", kernel.fstat(ends.dumped[0]), types.DEVPTS, Machine())
        ends.dumped.append(ends.pair(other)[0])
        with pytest.raises(DetachedError, match="two terminals with the number 0"):
            refuse_terminal(b"ptmx", kernel.fstat(ends.dumped[0]), types.DEVPTS, Machine())
