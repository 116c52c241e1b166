"""Terminals: the ends of pseudo terminals, sessions, and what stands for a terminal."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import struct
import termios
from pathlib import Path

import pytest

from .conftest import MakeScenario
from .harness import kernel, look
from .harness.agent import Check, Task
from .harness.placement import Placement

TIOCSPTLCK, TIOCGPTN, TIOCGPTPEER = 0x40045431, 0x80045430, 0x5441


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
    """Both ends of a terminal, which is not the first one; without echo, with a size."""
    first, _ = open_master(task.points[0])
    master, name = open_master(task.points[0])
    slave = os.open(f"{task.points[0]}/{name}", os.O_RDWR | os.O_NOCTTY)
    other = os.open(f"{task.points[0]}/{name}", os.O_RDONLY | os.O_NOCTTY)
    attributes = termios.tcgetattr(slave)
    attributes[3] &= ~termios.ECHO
    termios.tcsetattr(slave, termios.TCSANOW, attributes)
    termios.tcsetwinsize(master, (12, 34))
    os.close(first)
    task.detach()

    def check() -> list[object]:
        os.write(slave, b"out")
        os.write(master, b"in\n")
        echo = bool(termios.tcgetattr(slave)[3] & termios.ECHO)
        (number,) = struct.unpack("i", fcntl.ioctl(master, TIOCGPTN, bytes(4)))
        peer = fcntl.ioctl(master, TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY)
        one = [os.fstat(fd).st_rdev for fd in (slave, other, peer)]
        os.close(peer)
        said = [os.read(master, 10).decode(), os.read(other, 10).decode()]
        return [*said, echo, termios.tcgetwinsize(slave), number, len(set(one))]

    return check


@pytest.mark.covers("terminal")
def test_pair(scenario: MakeScenario, every_placement: Placement) -> None:
    made = scenario(every_placement, mount_source=mount_devpts, populate=no_files)
    held = made.start(hold_pair).cycle()
    assert held.ask() == ["out", "in\n", False, [12, 34], 1, 1]


def hold_session(task: Task) -> Check:
    """A master, and a child that is a session with the terminal as its controlling one."""
    master, name = open_master(task.points[0])
    kept, _ = open_master(task.points[0])  # whose slave nobody has

    def lead() -> Check:
        os.close(master)
        os.close(kept)
        os.setsid()
        slave = os.open(f"{task.points[0]}/{name}", os.O_RDWR)
        attributes = termios.tcgetattr(slave)
        attributes[1], attributes[3] = 0, termios.ISIG | termios.NOFLSH
        termios.tcsetattr(slave, termios.TCSANOW, attributes)
        got: list[int] = []
        signal.signal(signal.SIGINT, lambda number, _: got.append(number))

        def check() -> list[object]:
            own = os.open("/dev/tty", os.O_RDONLY)
            leads = os.tcgetpgrp(own) == os.getpid()
            os.close(own)
            text = os.read(slave, 10).decode()
            os.write(slave, b"out")
            signals = got.copy()
            got.clear()
            return [leads, text, signals]

        return check

    ask = task.fork(lead)
    task.detach()

    def check() -> list[object]:
        os.write(master, b"\x03in")
        (number,) = struct.unpack("i", fcntl.ioctl(kept, TIOCGPTN, bytes(4)))
        return [*ask(), os.read(master, 10).decode(), number]

    return check


@pytest.mark.covers("terminal")
def test_session(scenario: MakeScenario, placement: Placement) -> None:
    """Whoever has the master interrupts the one whose controlling terminal it is."""
    made = scenario(placement, mount_source=mount_devpts, populate=no_files)
    held = made.start(hold_session).cycle()
    assert held.ask() == [True, "in", [signal.SIGINT], "out", 1]
    held.cycle()
    assert held.ask() == [True, "in", [signal.SIGINT], "out", 1]
