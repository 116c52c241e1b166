"""Terminals: the ends of pseudo terminals, sessions, and what stands for a terminal."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import struct
import termios
from pathlib import Path

import pytest

from ..conftest import MakeScenario
from ..harness import kernel, look
from ..harness.agent import Check, Task
from ..harness.placement import Bind, Placement, Shape

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


PAIR = ["out", "in\n", False, [12, 34], 1, 1]


@pytest.mark.covers("terminal")
def test_pair(scenario: MakeScenario, every_placement: Placement) -> None:
    made = scenario(every_placement, mount_source=mount_devpts, populate=no_files)
    held = made.start(hold_pair).cycle()
    assert held.ask() == PAIR


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


def hold_orphan(task: Task) -> Check:
    """A slave without a master: reading it, one is at the end."""
    master, name = open_master(task.points[0])
    slave = os.open(f"{task.points[0]}/{name}", os.O_RDWR | os.O_NOCTTY)
    os.close(master)
    task.detach()
    return lambda: [os.read(slave, 10).decode(), os.fstat(slave).st_nlink]


@pytest.mark.covers("terminal")
def test_master_is_closed(scenario: MakeScenario, placement: Placement) -> None:
    held = scenario(placement, mount_source=mount_devpts, populate=no_files).start(hold_orphan)
    assert held.cycle().ask() == ["", 0]


def populate_with_nodes(source: Path) -> None:
    """The nodes that stand for a task's own terminal, and for a new one."""
    os.mknod(source / "tty", 0o20666, os.makedev(5, 0))
    os.mknod(source / "ptmx", 0o20666, os.makedev(5, 2))
    (source / "pts").mkdir()
    mount_devpts(source / "pts")


def hold_tty(task: Task) -> Check:
    """A terminal on an attached mount, and the node that stands for it on the other one."""
    master, name = open_master("/dev")
    slave = os.open(f"/dev/pts/{name}", os.O_RDWR | os.O_NOCTTY)
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    own = os.open(f"{task.points[0]}/tty", os.O_RDWR)
    task.detach()

    def check() -> str:
        os.write(own, b"out")
        return os.read(master, 10).decode()

    return check


@pytest.mark.covers("terminal")
def test_own_terminal(scenario: MakeScenario) -> None:
    held = scenario(populate=populate_with_nodes).start(hold_tty)
    assert held.cycle().ask() == "out"


def hold_outside(task: Task, devpts: str) -> Check:
    """A terminal that is opened by a node outside of its devpts, as /dev/ptmx is."""
    mount = ["mount", "--bind", "--no-mtab", devpts, f"{task.points[0]}/pts"]
    os.waitpid(os.posix_spawnp("mount", mount, os.environ), 0)
    master, _ = open_master(task.points[0])
    task.detach()
    return lambda: os.isatty(master)


@pytest.mark.detached
def test_node_outside_of_devpts(scenario: MakeScenario) -> None:
    """The kernel looks for the devpts beside the node, and on a detached mount there is none."""
    held = scenario(populate=populate_with_nodes)
    held.start(hold_outside, devpts=str(held.ground.source / "pts"))
    held.dump().failed("criu-detached: .* opened through a device node outside of devpts")
    assert held.ask() is True


def hold_in_flight(task: Task) -> Check:
    """A terminal that is in a socket alone."""
    one, other = socket.socketpair()
    master, _ = open_master(task.points[0])
    socket.send_fds(one, [b"!"], [master])
    os.close(master)
    task.detach()
    return lambda: [os.isatty(fd) for fd in socket.recv_fds(other, 1, 1)[1]]


@pytest.mark.parametrize("attached", [True, False])
def test_in_flight(scenario: MakeScenario, attached: bool) -> None:
    """CRIU asks a task for the parameters of a terminal, which no task has open here."""
    made = scenario(mount_source=mount_devpts, populate=no_files, attached=attached)
    held = made.start(hold_in_flight)
    held.dump().failed("likely SCM case")
    assert held.ask() == [True]


def hold_two(task: Task) -> Check:
    """Terminals with one number of two devpts."""
    ends = []
    for point in task.points:
        master, name = open_master(point)
        ends += [master, os.open(f"{point}/{name}", os.O_RDWR | os.O_NOCTTY)]
    task.detach()
    return lambda: [os.isatty(end) for end in ends]


def mount_two(source: Path) -> None:
    """Two instances of devpts."""
    kernel.mount("source", source, "tmpfs")
    for name in ("one", "two"):
        (source / name).mkdir()
        mount_devpts(source / name)


@pytest.mark.detached
@pytest.mark.parametrize("attached", [True, False])
def test_two_of_one_number(scenario: MakeScenario, attached: bool) -> None:
    """CRIU takes them for one: attached, it fails at restore."""
    binds = [Bind(Shape(name, name, "")) for name in ("one", "two")]
    made = scenario(binds=binds, mount_source=mount_two, populate=no_files, attached=attached)
    held = made.start(hold_two)
    if attached:
        held.dump().succeeded()
        held.restore().failed("Can't open slave tty")
    else:
        held.dump().failed("criu-detached: .* two terminals with the number 0")
        assert held.ask() == [True] * 4


def hold_slave(task: Task) -> Check:
    """A terminal whose master is somebody else's, as a shell's is."""
    (name,) = [name for name in os.listdir(task.points[0]) if name.isdigit()]
    slave = os.open(f"{task.points[0]}/{name}", os.O_RDWR | os.O_NOCTTY)
    task.detach()
    return lambda: [os.write(slave, b"out"), os.isatty(slave)]


@pytest.mark.covers("terminal")
@pytest.mark.parametrize(
    ("where", "gone"),
    [
        (Placement.NAMESPACE, ""),
        (Placement.HOST, ""),
        (Placement.HOST, "at restore"),
        (Placement.HOST, "at dump"),
    ],
)
def test_shell_job(scenario: MakeScenario, where: Placement, gone: str) -> None:
    """With --shell-job CRIU replaces the terminal by the one that it is run on."""
    terminals: list[tuple[int, str]] = []

    def populate(devpts: Path) -> None:
        terminals.append(open_master(str(devpts)))

    held = scenario(where, mount_source=mount_devpts, populate=populate).start(hold_slave)
    if gone == "at dump":
        kernel.umount2(held.ground.source, kernel.MNT_DETACH)
        assert "unless CRIU is to replace it (--shell-job)" in held.dump().failed("mount=").log
    else:
        held.dump().failed("Found slave peer index")
    assert held.ask() == [3, True]
    held.dump("--shell-job").succeeded()
    if gone == "at restore":
        kernel.umount2(held.ground.source, kernel.MNT_DETACH)
    if gone:
        mount_devpts(held.ground.source)
    populate(held.ground.source)
    (old, _), (new, name) = terminals
    run_on_new = ["bash", "-c", f'exec "$@" <>{held.ground.source}/{name}', "bash"]
    held.restore("--shell-job", prefix=run_on_new).succeeded()
    assert held.ask() == [3, True]
    assert [os.read(master, 10) for master in (old, new)] == [b"out", b"out"]
    for master in (old, new):
        os.close(master)


@pytest.mark.detached
@pytest.mark.covers("terminal", column="sole-held", outcome="refused")
def test_sole_held(scenario: MakeScenario) -> None:
    """Terminals are in no image but as those of a devpts."""
    made = scenario(mount_source=mount_devpts, populate=no_files)
    held = made.start(hold_pair)
    kernel.umount2(held.ground.source, kernel.MNT_DETACH)
    held.dump().failed("criu-detached: .* there are terminals in it; .*, or keep it mounted")
    assert look.is_running(held.pid)
    assert held.ask()[0] == "out"
