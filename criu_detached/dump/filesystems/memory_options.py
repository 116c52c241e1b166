# SPDX-License-Identifier: GPL-2.0-only
"""The options of a filesystem in memory: from Linux 7.0 on the kernel tells them."""

from __future__ import annotations

import os
import stat
from itertools import chain

from criu_detached.criu import log
from criu_detached.dump.observe.processes import files_of
from criu_detached.filesystems.types import TMPFS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from criu_detached.dump.observe.machine import Machine
    from criu_detached.dump.open_file import OpenFile
    from criu_detached.kernel.statmount import StatMount

# What the kernel shows with the options, and mount(2) does not take or the record says otherwise.
_NOT_OPTIONS = {b"rw", b"ro", b"seclabel"}


def memory_options(file: OpenFile, known: StatMount | None, machine: Machine) -> list[bytes]:
    """Options of the superblock; where they are not told, there is a warning.

    Args:
        file: of the filesystem.
        known: what statmount(2) says of one of its mounts, where the kernel can.
        machine: what is around the dump.
    """
    if known:
        shown = known.mnt_opts
        return [option for option in shown if option.partition(b"=")[0] not in _NOT_OPTIONS]
    if file.fs_type is not TMPFS:
        return []
    log.warn(
        "this kernel does not tell the options of a filesystem in memory, as Linux 7.0 or newer"
        " does: its size and number of inodes are kept, and others (noswap, mpol, ...) are lost"
    )
    fs = os.fstatvfs(file.fd)
    limits = [b"size=%d" % (fs.f_blocks * fs.f_frsize), b"nr_inodes=%d" % fs.f_files]
    return limits + _huge(chain([file.fd], files_of(machine, file.stat.dev)))


def _huge(files: Iterator[int]) -> list[bytes]:
    """The option of huge pages, as the size of blocks shows it (shmem_getattr, mm/shmem.c).

    With huge=always every file has large blocks, with huge=within_size those that fill one.
    """
    found: set[bytes] = set()
    for fd in files:
        found_stat = os.fstat(fd)
        size, block = found_stat.st_size, found_stat.st_blksize
        if stat.S_ISREG(found_stat.st_mode) and block > os.sysconf("SC_PAGESIZE"):
            small = size < block
            found.add(b"huge=always" if small else b"huge=within_size")
    return sorted(found)[:1]
