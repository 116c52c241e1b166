# SPDX-License-Identifier: GPL-2.0-only
"""Terminals, which CRIU restores by more than their path.

It opens a pseudo terminal by its master as often as it takes to get the number that it had.
Then it opens the slaves by their paths, and where it needs the other end of a terminal for a
moment (to give a session its controlling terminal, to hold a slave whose master is closed), it
makes up that one's name: see other_end.
"""

from __future__ import annotations

import os
import stat

from criu_detached.errors import DetachedError, quote
from criu_detached.images.records import File

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.kernel import FileStat

# Device numbers (get_tty_driver, criu/tty.c): /dev/tty, console and ptmx; virtual consoles;
# serial lines; slaves of pseudo terminals.
_PTMX = os.makedev(5, 2)
_SLAVE_MAJOR = 136
# Inodes in devpts (mknod_ptmx and devpts_pty_new, fs/devpts/inode.c).
_PTMX_INODE, _FIRST_SLAVE_INODE = 2, 3
_MAJORS = (4, 5, _SLAVE_MAJOR, 188, 204)


def is_terminal(file: FileStat | File) -> bool:
    """Tell a terminal by its device number."""
    return stat.S_ISCHR(file.mode) and os.major(file.rdev) in _MAJORS


def is_master(file: FileStat | File) -> bool:
    """Tell the master of a pseudo terminal."""
    return stat.S_ISCHR(file.mode) and file.rdev == _PTMX


def is_slave(file: FileStat | File) -> bool:
    """Tell the slave of a pseudo terminal."""
    return stat.S_ISCHR(file.mode) and os.major(file.rdev) == _SLAVE_MAJOR


def other_end(file: File, name: bytes) -> File:
    """Return the record that the other end of a terminal would have, on the same mount.

    Args:
        file: the end that has a record.
        name: what CRIU has put after its key (pty_alloc_fake_reg, criu/tty.c): "ptmx" for the
            master, "pts/" and a number for a slave.

    Raises:
        DetachedError: it is no such name.
    """
    number = name.removeprefix(b"pts/")
    if is_slave(file) and name == b"ptmx":
        return _end(file, name, _PTMX, _PTMX_INODE)
    if is_master(file) and number != name and number.isdigit() and len(number) <= 7:
        slave = int(number)
        return _end(file, number, os.makedev(_SLAVE_MAJOR, slave), _FIRST_SLAVE_INODE + slave)
    raise DetachedError(f"no terminal has a name that ends in {quote(name)}")


def _end(file: File, path: bytes, rdev: int, ino: int) -> File:
    return File(mnt_id=file.mnt_id, ino=ino, dev=file.dev, mode=file.mode, path=path, rdev=rdev)
