# SPDX-License-Identifier: GPL-2.0-only
"""Filesystems whose files the kernel makes: they are mounted again, from nothing.

Most have one superblock for each namespace of some kind, or one alone. A probe mount shows
it, if criu is in the same namespace. Of proc, devpts and bpf every mount is a new one.
"""

from __future__ import annotations

import os

from criu_detached.dump.filesystems.probe import ProbeSource, mount_probe, superblock_flags
from criu_detached.dump.filesystems.same_file import SameName
from criu_detached.dump.observe.directories import names_in
from criu_detached.dump.observe.processes import holding_processes, root_by_held
from criu_detached.errors import DetachedError, quote
from criu_detached.filesystems.superblock import superblock_of
from criu_detached.filesystems.types import (
    BINFMT_MISC,
    BPF,
    DEVPTS,
    FRESH,
    PROC,
    SET_BY_MOUNTING,
)
from criu_detached.images.records import Filesystem
from criu_detached.kernel import namespaces
from criu_detached.kernel.fds import Fds
from criu_detached.terminals import is_terminal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from criu_detached.dump.describe.new_mount import NewMount
    from criu_detached.dump.describe.sources import Source
    from criu_detached.dump.observe.machine import Machine
    from criu_detached.dump.open_file import OpenFile
    from criu_detached.filesystems.types import FilesystemType

# The files of binfmt_misc that are no registered format.
_BINFMT_FILES = {b"register", b"status"}

_NEEDS_7_0 = "the kernel does not tell its options; Linux 7.0 or newer does"


def probe_pseudo(new: NewMount, number: int, machine: Machine) -> Iterator[ProbeSource]:
    """Yield, opened, the probe mount of such a filesystem.

    Args:
        new: a mount of it.
        number: for the record.
        machine: what is around the dump.

    Raises:
        DetachedError: it would not come back as it is.
    """
    fs_type, known = new.file.fs_type, new.statmount
    name = fs_type.names[0]
    if is_terminal(new.file.stat) and fs_type is DEVPTS:
        raise _has_state(fs_type)
    if known is None and _needs_options(new.file):
        raise DetachedError(f"its filesystem ({quote(name)}) cannot be mounted again: {_NEEDS_7_0}")
    if known is not None:
        options = [*superblock_flags(known.sb_flags), *known.opt_array]
    else:
        options = [b"ro"] if new.file.statfs.flags & os.ST_RDONLY else []
    probe = _probe(name, (known.sb_source if known else b"") or name, options)
    try:
        record = Filesystem(
            id=number,
            superblock=superblock_of(probe.fd, name),
            source=(known.sb_source if known else b"") or name,
            options=options,
            fresh=1,
        )
        if fs_type.key:
            _check_keyed(probe, fs_type, new.dev)
            source = ProbeSource(probe, record)
        else:
            _check_fresh(probe, new, machine)
            source = ProbeSource(probe, record, SameName(exact=known is None))
    except (DetachedError, OSError):
        probe.close()
        raise
    yield source


def _needs_options(file: OpenFile) -> bool:
    """Tell whether a mount without its options might differ for the tasks.

    Those of proc say what a directory shows, and files have none.
    """
    if file.fs_type is PROC:
        return file.is_directory
    return file.fs_type.comes_back == FRESH or file.fs_type.has(SET_BY_MOUNTING)


def _probe(fs_type: bytes, source: bytes, options: list[bytes]) -> Source:
    try:
        with namespaces.PrivateNamespace():
            return mount_probe(fs_type, source, options)
    except OSError as error:
        raise DetachedError(
            f"its filesystem ({quote(fs_type)}) cannot be mounted again: {error}"
        ) from error


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


def _check_fresh(probe: Source, new: NewMount, machine: Machine) -> None:
    """Refuse an instance whose state a new one would not have."""
    with Fds() as fds:
        directory = root_by_held(machine, new.file)
        if directory is not None:
            fds.add(directory)
        if new.statmount is None or new.statmount.mnt_root != b"/":
            directory = None  # a new one has nothing to compare it with
        if new.file.fs_type is PROC:
            _check_pid_namespace(probe, new, directory, machine)
        elif directory is None or set(names_in(directory)) - set(names_in(probe.fd)):
            raise _has_state(new.file.fs_type)


def _check_pid_namespace(
    probe: Source, new: NewMount, directory: int | None, machine: Machine
) -> None:
    """Refuse a proc that shows other processes than a new one would."""
    if directory is not None:
        shown = os.readlink(b"self", dir_fd=directory)
        same = shown == os.readlink(b"self", dir_fd=probe.fd)
    else:
        same = _in_own_pid_namespace(machine, new.mnt_id)
    if not same:
        raise DetachedError(
            "its filesystem (proc) is of another PID namespace than criu's, or whether it is"
            " is unsure: keep one mounted in the mount namespace of the tasks"
        )


def _has_state(fs_type: FilesystemType) -> DetachedError:
    is_bpf = fs_type is BPF
    kind, what = ("bpf", "objects are pinned") if is_bpf else ("devpts", "there are terminals")
    return DetachedError(
        f"its filesystem ({kind}) has a state that is not saved, or may have: {what} in it;"
        " remove them, or keep it mounted somewhere"
    )


def _in_own_pid_namespace(machine: Machine, mnt_id: int) -> bool:
    """Tell whether all who hold a file on a mount are in this process's PID namespace."""
    own = os.readlink("/proc/self/ns/pid")
    found = [os.readlink(f"/proc/{pid}/ns/pid") for pid in holding_processes(machine, mnt_id)]
    return bool(found) and set(found) == {own}
