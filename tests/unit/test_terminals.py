"""What a terminal is, and what CRIU calls its other end."""

from __future__ import annotations

import os
import stat

import pytest

from criu_detached.errors import DetachedError
from criu_detached.images.records import File
from criu_detached.terminals import is_master, is_slave, is_terminal, other_end

CHARACTER = stat.S_IFCHR | 0o620


def terminal(major: int, minor: int, mode: int = CHARACTER) -> File:
    """The record of a device."""
    return File(mnt_id=7, ino=9, dev=11, mode=mode, path=b"x", rdev=os.makedev(major, minor))


MASTER, SLAVE = terminal(5, 2), terminal(136, 300)


def test_kinds() -> None:
    assert is_terminal(MASTER) and is_master(MASTER) and not is_slave(MASTER)
    assert is_terminal(SLAVE) and is_slave(SLAVE) and not is_master(SLAVE)
    for major, minor in [(5, 0), (5, 1), (4, 1), (204, 64)]:
        found = terminal(major, minor)
        assert is_terminal(found) and not is_master(found) and not is_slave(found)
    assert not is_terminal(terminal(1, 3))
    block = terminal(5, 2, stat.S_IFBLK | 0o600)
    assert not is_terminal(block) and not is_master(block)
    assert not is_slave(terminal(136, 1, stat.S_IFBLK | 0o600))


def test_other_end() -> None:
    slave = other_end(MASTER, b"pts/300")
    assert (slave.path, slave.rdev, slave.ino) == (b"300", SLAVE.rdev, 303)
    assert (slave.mnt_id, slave.dev) == (MASTER.mnt_id, MASTER.dev)
    master = other_end(SLAVE, b"ptmx")
    assert (master.path, master.rdev, master.ino) == (b"ptmx", MASTER.rdev, 2)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        (MASTER, b"ptmx"),
        (MASTER, b"3"),
        (MASTER, b"pts/"),
        (MASTER, b"pts/../3"),
        (MASTER, b"pts/12345678"),
        (SLAVE, b"pts/3"),
        (SLAVE, b"x"),
        (terminal(1, 3), b"ptmx"),
    ],
)
def test_no_other_end(file: File, name: bytes) -> None:
    with pytest.raises(DetachedError, match="no terminal has a name that ends in"):
        other_end(file, name)
