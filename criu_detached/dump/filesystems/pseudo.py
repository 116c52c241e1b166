# SPDX-License-Identifier: GPL-2.0-only
"""Filesystems whose files the kernel makes: they are mounted again, from nothing.

Most have one superblock for each namespace of some kind, or one alone. A trial mount shows
it, if criu is in the same namespace. Of proc, devpts and bpf every mount is a new one.
"""

from __future__ import annotations

import os
import stat

from criu_detached import kernel
from criu_detached.dump.filesystems.probe import mount_for_trial, superblock_flags
from criu_detached.dump.filesystems.same_file import NamedTwins
from criu_detached.dump.observe.directories import names_in, root_by_held
from criu_detached.dump.observe.processes import holding_processes
from criu_detached.errors import DetachedError, quote
from criu_detached.filesystems.superblock import superblock_of, type_of
from criu_detached.filesystems.types import (
    BINFMT_MISC,
    BPF,
    DEVPTS,
    FRESH,
    PROC,
    SET_BY_MOUNTING,
    FilesystemType,
)
from criu_detached.images.records import Filesystem
from criu_detached.kernel import namespaces
from criu_detached.terminals import is_terminal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from criu_detached.dump.describe.sources import Source
    from criu_detached.kernel import FileStat
    from criu_detached.kernel.statmount import StatMount

# The files of binfmt_misc that are no registered format.
_BINFMT_FILES = {b"register", b"status"}

_NEEDS_7_0 = "the kernel does not tell its options; Linux 7.0 or newer does"


def mounted_anew(
    fd: int, facts: FileStat, known: StatMount | None, number: int
) -> Iterator[Source]:
    """Yield, opened, the trial mount of such a filesystem.

    Args:
        fd: a file on it.
        facts: of the file.
        known: what statmount says of its mount, where the kernel can.
        number: for the record.

    Raises:
        DetachedError: it would not come back as it is.
    """
    fs_type = type_of(fd)
    name = fs_type.names[0]
    if is_terminal(facts) and fs_type is DEVPTS:
        raise _has_state(fs_type)
    if known is None and _needs_options(fs_type, facts):
        raise DetachedError(f"its filesystem ({quote(name)}) cannot be mounted again: {_NEEDS_7_0}")
    options = [*superblock_flags(known.sb_flags), *known.opt_array] if known else _read_only(fd)
    source = _trial(name, (known.sb_source if known else b"") or name, options, number)
    try:
        if fs_type.key:
            _check_keyed(source, fs_type, known.sb_dev if known else facts.dev)
        else:
            directory = root_by_held(fd, facts.mnt_id)
            try:
                _check_fresh(fs_type, source, directory, facts, known)
            finally:
                if directory >= 0:
                    os.close(directory)
            source.twins = NamedTwins(exact=known is None)
    except (DetachedError, OSError):
        source.close()
        raise
    yield source


def _needs_options(fs_type: FilesystemType, facts: FileStat) -> bool:
    """Tell whether a mount without its options might differ for the tasks.

    Those of proc say what a directory shows, and files have none.
    """
    if fs_type is PROC:
        return stat.S_ISDIR(facts.mode)
    return fs_type.comes_back == FRESH or fs_type.has(SET_BY_MOUNTING)


def _read_only(fd: int) -> list[bytes]:
    return [b"ro"] if kernel.fstatfs(fd).flags & os.ST_RDONLY else []


def _trial(fs_type: bytes, source: bytes, options: list[bytes], number: int) -> Source:
    try:
        with namespaces.PrivateNamespace():
            trial = mount_for_trial(fs_type, source, options)
    except OSError as error:
        raise DetachedError(
            f"its filesystem ({quote(fs_type)}) cannot be mounted again: {error}"
        ) from error
    superblock = superblock_of(trial.fd, fs_type)
    trial.filesystem = Filesystem(
        id=number, superblock=superblock, source=source, options=options, fresh=1
    )
    return trial


def _check_keyed(source: Source, fs_type: FilesystemType, dev: int) -> None:
    if source.info.dev != dev:
        name = quote(source.info.fs_type)
        raise DetachedError(
            f"its filesystem ({name}) is of another {fs_type.key} than criu's: keep one mounted in"
            " the mount namespace of the tasks"
        )
    if fs_type is BINFMT_MISC and set(names_in(source.fd)) > _BINFMT_FILES:
        raise DetachedError(
            "formats are registered in its filesystem (binfmt_misc), and lost when the tasks are"
            " gone: remove them, or keep it mounted somewhere"
        )


def _check_fresh(
    fs_type: FilesystemType,
    source: Source,
    directory: int,
    facts: FileStat,
    known: StatMount | None,
) -> None:
    """Refuse an instance whose state a new one would not have."""
    at_root = known is not None and known.mnt_root == b"/"
    if fs_type is PROC:
        if directory >= 0 and at_root:
            shown = os.readlink(b"self", dir_fd=directory)
            same = shown == os.readlink(b"self", dir_fd=source.fd)
        else:
            same = _in_own_pid_namespace(facts.mnt_id)
        if not same:
            raise DetachedError(
                "its filesystem (proc) is of another PID namespace than criu's, or whether it is"
                " is unsure: keep one mounted in the mount namespace of the tasks"
            )
        return
    if directory < 0 or not at_root or set(names_in(directory)) - set(names_in(source.fd)):
        raise _has_state(fs_type)


def _has_state(fs_type: FilesystemType) -> DetachedError:
    is_bpf = fs_type is BPF
    kind, what = ("bpf", "objects are pinned") if is_bpf else ("devpts", "there are terminals")
    return DetachedError(
        f"its filesystem ({kind}) has a state that is not saved, or may have: {what} in it;"
        " remove them, or keep it mounted somewhere"
    )


def _in_own_pid_namespace(mnt_id: int) -> bool:
    """Tell whether all who hold a file on a mount are in this process's PID namespace."""
    own = os.readlink("/proc/self/ns/pid")
    found = [os.readlink(f"/proc/{pid}/ns/pid") for pid in holding_processes(mnt_id)]
    return bool(found) and set(found) == {own}
