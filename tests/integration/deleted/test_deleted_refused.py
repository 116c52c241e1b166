"""Deleted files that could not come back as they were: the dump says so, and nothing is lost."""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ..conftest import MakeScenario
from ..harness.agent import Check, Task
from ..harness.placement import SUBDIRECTORY, Bind, Placement
from ..harness.scenario import Scenario
from ..soleheld import sole

pytestmark = pytest.mark.detached

FS_IOC_SETFLAGS, FS_IMMUTABLE_FL, FS_APPEND_FL = 0x40086602, 0x10, 0x20  # linux/fs.h
TWO = [Bind(SUBDIRECTORY), Bind(SUBDIRECTORY)]
PART = r"file.* mount \d+ .*mount \d+.*their data would part"


def hold_twice(task: Task, how: str, attached: str) -> Check:
    """A deleted file by an fd, and once more, by another mount; what one writes the other reads."""
    fd = os.open(task.path("file"), os.O_RDWR)
    other = os.open(attached or task.path("file", 1), os.O_RDWR)
    if how == "mapping":
        shared = mmap.mmap(other, 4)
        os.close(other)
    if how != "linked":
        os.unlink(task.path("file"))
    task.detach()

    def check() -> str:
        os.pwrite(fd, b"part", 0)
        return (shared[:] if how == "mapping" else os.pread(other, 4, 0)).decode()

    return check


def refused(held: Scenario, pattern: str) -> None:
    """The dump fails with one line of the plugin's, and the process goes on."""
    answer = held.ask()
    run = held.dump().failed(f"criu-detached: .*{pattern}")
    assert len([line for line in run.errors() if "criu-detached" in line]) == 1, run.report()
    assert held.ask() == answer


@pytest.mark.parametrize("how", ["fd", "mapping"])
def test_two_mounts(scenario: MakeScenario, placement: Placement, how: str) -> None:
    """One inode on two mounts would be two: what one writes the other would not read."""
    held = scenario(placement, TWO).start(hold_twice, how=how, attached="")
    assert held.ask() == "part"
    refused(held, PART)


@pytest.mark.parametrize("how", ["fd", "mapping"])
def test_attached_mount(scenario: MakeScenario, how: str) -> None:
    """CRIU makes the deleted file of an attached mount anew by itself."""
    held = scenario()
    held.start(hold_twice, how=how, attached=str(held.ground.source / "tree" / "file"))
    assert held.ask() == "part"
    refused(held, PART)


def hold_in_flight(task: Task, attached: str, flies: str, sockets_first: bool) -> Check:
    """A deleted file by an fd on one mount, and by another mount on its way over a socket."""
    fds = [os.open(path, os.O_RDWR) for path in (task.path("file"), attached)]
    os.unlink(task.path("file"))
    one, other = socket.socketpair()
    flying, held = fds if flies == "detached" else reversed(fds)
    socket.send_fds(one, [b"x"], [flying])
    if sockets_first:  # CRIU dumps fds in the order of their numbers
        held = os.dup(held)
    for fd in {*fds} - {held}:
        os.close(fd)
    task.detach()

    def check() -> str:
        _, [received], _, _ = socket.recv_fds(other, 1, 1)
        os.pwrite(held, b"part", 0)
        read = os.pread(received, 4, 0).decode()
        socket.send_fds(one, [b"x"], [received])
        os.close(received)
        return read

    return check


@pytest.mark.parametrize("sockets_first", [True, False])
@pytest.mark.parametrize("flies", ["attached", "detached"])
def test_in_flight(scenario: MakeScenario, flies: str, sockets_first: bool) -> None:
    """No process shows what is in flight, but CRIU dumps it as any file."""
    held = scenario()
    attached = str(held.ground.source / "tree" / "file")
    held.start(hold_in_flight, attached=attached, flies=flies, sockets_first=sockets_first)
    assert held.ask() == "part"
    refused(held, PART if flies == "detached" else r"file.* in flight .*their data would part")


@pytest.mark.parametrize("how", ["fd", "linked"])
def test_sole_held(scenario: MakeScenario, how: str) -> None:
    """On a filesystem that is made anew; a name that is left lies where no task reaches it."""
    held = scenario(binds=TWO).start(hold_twice, how=how, attached="")
    if how == "linked":
        name = held.ground.source / "tree" / "file"
        (held.ground.source / "elsewhere").hardlink_to(name)
        name.unlink()
    sole(held)
    assert held.ask() == "part"
    refused(held, PART)


def hold_inner(task: Task) -> Check:
    """Two files, of which one will be deleted by others."""
    fds = [os.open(task.path(name), os.O_RDWR) for name in ("dir/inner", "other")]
    task.detach()
    return lambda: [os.pread(fd, 100, 0).decode() for fd in fds]


@contextmanager
def flagged(fd: int, flag: int) -> Iterator[None]:
    """An open directory or file with an inode flag."""
    fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("l", flag))
    try:
        yield
    finally:
        fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("l", 0))


@pytest.mark.parametrize("flag", [FS_IMMUTABLE_FL, FS_APPEND_FL])
def test_frozen_directory(scenario: MakeScenario, placement: Placement, flag: int) -> None:
    """A name can't be made in it, or would have to stay; neither is tried at the restore."""
    held = scenario(placement).start(hold_inner)
    directory = held.ground.source / "tree" / "dir"
    (directory / "inner").unlink()
    fd = os.open(directory, os.O_RDONLY)
    with flagged(fd, flag):
        refused(held, r"tree/dir\): .*chattr -ia")
    expected = held.ask()
    held.dump().succeeded()
    with flagged(fd, flag):
        held.restore().failed(r"criu-detached: .*tree/dir on its mount\): use chattr -ia")
        held.assert_gone()
        assert os.listdir(fd) == []
    os.close(fd)
    held.restore().succeeded()
    assert held.ask() == expected


@pytest.mark.parametrize("flag", [FS_IMMUTABLE_FL, FS_APPEND_FL])
def test_frozen_file(scenario: MakeScenario, flag: int) -> None:
    """No link is made to such a file, and a new one would not have the flag."""
    held = scenario().start(hold_inner)
    name = held.ground.source / "tree" / "dir" / "inner"
    with open(name) as kept:
        name.unlink()
        with flagged(kept.fileno(), flag):
            refused(held, "immutable or append-only")


@pytest.mark.parametrize("mode", [0o755, 0o1777, 0o777])
@pytest.mark.parametrize("linked", [False, True])
def test_directory_of_the_host(scenario: MakeScenario, mode: int, linked: bool) -> None:
    """A user namespace makes no names in what is not its own, or can't put the times back."""
    held = scenario(Placement.NAMESPACE, userns=True).start(hold_inner)
    directory = held.ground.source / "tree" / "dir"
    if linked:
        (directory.parent / "left").hardlink_to(directory / "inner")
    (directory / "inner").unlink()
    owner = directory.stat()
    os.chown(directory, 0, 0)
    directory.chmod(mode)
    refused(held, r"user namespace.*no rights .*tree/dir\)")
    os.chown(directory, owner.st_uid, owner.st_gid)
    held.dump().succeeded()
    held.restore().succeeded()
