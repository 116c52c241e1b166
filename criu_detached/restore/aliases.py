# SPDX-License-Identifier: GPL-2.0-only
"""The other name of a deleted file: what is left of it in the bind source."""

from __future__ import annotations

import os
import stat

from criu_detached import kernel, paths
from criu_detached.errors import DetachedError, quote
from criu_detached.kernel.fds import Fd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.images.records import Ghost


def open_alias(ghost: Ghost, source: int, proc: int, keeps_inodes: bool) -> Fd:
    """Open a deleted file by the name that is left of it, or by its handle.

    Args:
        ghost: its record.
        source: tree fd of a clone of the bind source.
        proc: fd of a procfs that shows this process its fds.
        keeps_inodes: superblock and root are the dumped ones, so inodes are the same.

    Returns:
        An O_PATH fd.

    Raises:
        DetachedError: neither leads to it.
    """
    fd = _by_name(ghost, source, keeps_inodes)
    if fd is None and keeps_inodes:
        fd = _by_handle(ghost, source, proc)
    if fd is None:
        assert ghost.file is not None  # record_reader
        raise DetachedError(
            f"{quote(ghost.file.path)} was deleted, and its other name in the bind source,"
            f" {quote(ghost.alias)}, does not lead to it any more: give it that name again"
        )
    return fd


def _by_name(ghost: Ghost, source: int, keeps_inodes: bool) -> Fd | None:
    file = ghost.file
    assert file is not None  # record_reader
    if not ghost.alias:
        return None
    try:
        fd = paths.open_at(source, ghost.alias)
    except OSError:
        return None
    found = kernel.fstat(fd)
    same_type = stat.S_IFMT(found.mode) == stat.S_IFMT(file.mode)
    if same_type and (not keeps_inodes or found.ino == file.ino):
        return fd
    fd.close()
    return None


def _by_handle(ghost: Ghost, source: int, proc: int) -> Fd | None:
    assert ghost.file is not None  # record_reader
    handle = ghost.file.handle
    if handle is None:
        return None
    with Fd.open(b"self/fd/%d" % source, os.O_RDONLY, proc) as mount:
        try:
            return kernel.open_by_handle(mount, (handle.type, handle.bytes), kernel.O_PATH)
        except OSError:
            return None
