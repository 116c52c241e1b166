"""Terminals: the plugin leaves them to CRIU, which looks for them on attached mounts alone."""

from __future__ import annotations

import fcntl
import os
import struct
import termios
from pathlib import Path

import pytest

from .conftest import MakeScenario
from .harness import kernel, look
from .harness.agent import Check, Task
from .harness.placement import Placement

TIOCSPTLCK, TIOCGPTN = 0x40045431, 0x80045430


def mount_devpts(source: Path) -> None:
    """An instance of devpts of the test's own."""
    kernel.mount("devpts", source, "devpts", data="ptmxmode=0666,mode=620")


def no_files(source: Path) -> None:
    """Nothing can be made in a devpts."""


def open_master(devpts: str) -> tuple[int, str]:
    """A new terminal: its master, and its slave's name."""
    master = os.open(f"{devpts}/ptmx", os.O_RDWR | os.O_NOCTTY)
    fcntl.ioctl(master, TIOCSPTLCK, struct.pack("i", 0))
    (number,) = struct.unpack("i", fcntl.ioctl(master, TIOCGPTN, bytes(4)))
    return master, str(number)


def hold_pair(task: Task) -> Check:
    """Both ends of a terminal, without echo."""
    master, name = open_master(task.points[0])
    slave = os.open(f"{task.points[0]}/{name}", os.O_RDWR | os.O_NOCTTY)
    attributes = termios.tcgetattr(slave)
    attributes[3] &= ~termios.ECHO
    termios.tcsetattr(slave, termios.TCSANOW, attributes)
    task.detach()

    def check() -> list[object]:
        os.write(slave, b"out")
        os.write(master, b"in\n")
        echo = bool(termios.tcgetattr(slave)[3] & termios.ECHO)
        return [os.read(master, 10).decode(), os.read(slave, 10).decode(), echo]

    return check


@pytest.mark.plain
def test_pair_attached(scenario: MakeScenario, placement: Placement) -> None:
    made = scenario(placement, attached=True, mount_source=mount_devpts, populate=no_files)
    held = made.start(hold_pair).cycle(plugin=False)
    assert held.ask() == ["out", "in\n", False]


@pytest.mark.detached
@pytest.mark.covers("terminal", outcome="refused")
def test_pair(scenario: MakeScenario, placement: Placement) -> None:
    held = scenario(placement, mount_source=mount_devpts, populate=no_files).start(hold_pair)
    held.dump().failed("Can't lookup mount=|criu-detached: ")
    assert look.is_running(held.pid)
    assert held.ask() == ["out", "in\n", False]


def hold_slave(task: Task) -> Check:
    """A terminal whose master is somebody else's, as a shell's is."""
    (name,) = [name for name in os.listdir(task.points[0]) if name.isdigit()]
    slave = os.open(f"{task.points[0]}/{name}", os.O_RDWR | os.O_NOCTTY)
    task.detach()
    return lambda: [os.write(slave, b"out"), os.isatty(slave)]


@pytest.mark.covers("terminal")
def test_shell_job(scenario: MakeScenario, placement: Placement) -> None:
    """With --shell-job CRIU replaces the terminal by the one that it is run on."""
    terminals: list[tuple[int, str]] = []

    def populate(devpts: Path) -> None:
        terminals.append(open_master(str(devpts)))

    held = scenario(placement, mount_source=mount_devpts, populate=populate).start(hold_slave)
    held.dump().failed("Found slave peer index|Can't lookup mount=")
    assert held.ask() == [3, True]
    held.dump("--shell-job").succeeded()
    populate(held.ground.source)
    (old, _), (new, name) = terminals
    run_on_new = ["bash", "-c", f'exec "$@" <>{held.ground.source}/{name}', "bash"]
    held.restore("--shell-job", prefix=run_on_new).succeeded()
    assert held.ask() == [3, True]
    assert [os.read(master, 10) for master in (old, new)] == [b"out", b"out"]
    for master in (old, new):
        os.close(master)
