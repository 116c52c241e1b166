# SPDX-License-Identifier: GPL-2.0-only
"""Overlays: a new superblock over the same layers, once the old one is gone.

Only the old one may write to its upper directory. So the trial mount of a dump is one of the
same layers without an upper directory: it shows the same files and changes nothing.
"""

from __future__ import annotations

import os
import stat
from itertools import chain

from criu_detached import kernel, paths
from criu_detached.dump.describe.roots import SEARCH_LIMIT
from criu_detached.dump.filesystems.probe import mount_for_trial, superblock_flags
from criu_detached.dump.filesystems.same_file import LayerTwins
from criu_detached.dump.observe.directories import names_in, root_by_held
from criu_detached.dump.observe.processes import held_files
from criu_detached.errors import DetachedError, quote
from criu_detached.filesystems.layers import (
    DATA,
    LOWER,
    UPPER,
    WORK,
    Layers,
    is_in_use,
    split_layers,
)
from criu_detached.filesystems.superblock import superblock_of
from criu_detached.images.records import Filesystem
from criu_detached.kernel import namespaces

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from criu_detached.dump.describe.sources import Source
    from criu_detached.kernel import FileStat
    from criu_detached.kernel.statmount import StatMount

# Options that need an upper directory, or would not let a layer be used twice.
_NOT_FOR_TRIAL = {b"index", b"nfs_export", b"fsync"}
# As mount(8) takes it, and as newer kernels show it.
_VOLATILE = {b"volatile", b"fsync=volatile"}


def overlaid(fd: int, facts: FileStat, known: StatMount | None, number: int) -> Iterator[Source]:
    """Yield, opened, a mount that shows what an overlay shows, for a trial.

    Args:
        fd: a file on the overlay.
        facts: of the file.
        known: what statmount says of it, where the kernel can.
        number: for the record.

    Raises:
        DetachedError: the overlay cannot be mounted again, or would not be the same.
    """
    if known is None:
        raise DetachedError(
            "the kernel does not tell of which layers this overlay is; Linux 7.0 or newer does."
            " Mount it somewhere before the dump"
        )
    named, options = split_layers(known.opt_array)
    if _VOLATILE & set(options):
        raise DetachedError(
            "the overlay is volatile, and the kernel mounts its upper directory once only: mount"
            " the overlay somewhere before the dump"
        )
    source, layers = _trial(named, options)
    twins = LayerTwins(layers, paths.from_link(known.root_path))
    try:
        _check_held(fd, facts.mnt_id, source.fd, twins)
        source.info.super_options = [b"ro" if known.read_only else b"rw"]
        source.twins = twins
        source.filesystem = Filesystem(
            id=number,
            superblock=superblock_of(fd, b"overlay"),
            source=known.sb_source,
            options=[*superblock_flags(known.sb_flags), *options],
            fresh=1,
            keeps_inodes=int(_has_lasting_inodes(fd, facts.mnt_id, known.sb_dev)),
            layers=layers.records(),
        )
    except (DetachedError, OSError):
        layers.close()
        source.close()
        raise
    yield source


def _trial(named: list[tuple[bytes, bytes]], options: list[bytes]) -> tuple[Source, Layers]:
    """Mount the same layers without an upper directory, and see whose the latter is."""
    with namespaces.PrivateNamespace():
        layers = Layers(named)
        try:
            upper = layers.find(UPPER)
            if upper >= 0:
                _check_upper(upper, layers)
            fds = [(LOWER, upper)] if upper >= 0 else []
            fds += [(option, fd) for option, fd in layers.fds if option in (LOWER, DATA)]
            trial = _options_for_trial(options)
            return mount_for_trial(b"overlay", b"overlay", trial, fds), layers
        except OSError as error:
            layers.close()
            raise DetachedError(f"the layers of the overlay cannot be mounted: {error}") from error
        except DetachedError:
            layers.close()
            raise


def _options_for_trial(options: list[bytes]) -> list[bytes]:
    found = [b"index=off"]
    for option in options:
        name, _, value = option.partition(b"=")
        if name == b"redirect_dir" and value == b"on":
            found.append(b"redirect_dir=follow")
        elif name == b"uuid" and value != b"off":
            continue  # it is in the upper directory
        elif name not in _NOT_FOR_TRIAL:
            found.append(option)
    return found


def _check_upper(upper: int, layers: Layers) -> None:
    """The directory at that path must be the one that the overlay writes to."""
    where = quote(layers.paths[[name for name, _ in layers.fds].index(UPPER)])
    if not is_in_use(upper):
        raise DetachedError(
            f"{where}, the path of the overlay's upper directory, is another directory where criu"
            " runs: was it moved, or is the overlay from another mount namespace?"
        )
    work = layers.find(WORK)
    if work < 0 or kernel.fstat(work).dev != kernel.fstat(upper).dev:
        raise DetachedError(
            "the path of the overlay's work directory is another directory where criu runs"
        )


def _check_held(fd: int, mnt_id: int, trial: int, twins: LayerTwins) -> None:
    """See that the trial mount shows the held files, and all that a directory leads to."""
    for held in chain([fd], held_files(mnt_id)):
        link = os.readlink(b"/proc/self/fd/%d" % held)
        if link.endswith(paths.DELETED):
            continue  # what is deleted is saved
        path = paths.join(twins.prefix, paths.from_link(link))
        _check_one(held, trial, path, twins)
    directory = root_by_held(fd, mnt_id)
    if directory < 0:
        return
    try:
        _check_tree(directory, trial, twins)
    finally:
        os.close(directory)


def _check_one(fd: int, trial: int, path: bytes, twins: LayerTwins) -> None:
    try:
        twin = paths.open_at(trial, path)
    except OSError as error:
        raise _other_layers(path) from error
    try:
        if not twins.is_one_at(fd, twin, path):
            raise _other_layers(path)
    finally:
        os.close(twin)


def _check_tree(directory: int, trial: int, twins: LayerTwins) -> None:
    """Compare what a directory of the overlay leads to, up to a limit."""
    queue, seen = [twins.prefix], 0
    for path in queue:
        inside = _below(path, twins.prefix)
        here = there = -1
        try:
            here = paths.open_at(directory, inside)
            there = paths.open_at(trial, path)
            names = names_in(here)
            if names != names_in(there):
                raise _other_layers(path)
            for name in names:
                entry = paths.join(path, name)
                mode = kernel.stat_beneath(here, name).mode
                if stat.S_ISDIR(mode):
                    queue.append(entry)
                else:
                    _check_entry(here, name, trial, entry, twins)
            seen += len(names)
        except OSError as error:
            raise _other_layers(path) from error
        finally:
            for fd in (here, there):
                if fd >= 0:
                    os.close(fd)
        if seen > SEARCH_LIMIT:
            return


def _check_entry(here: int, name: bytes, trial: int, path: bytes, twins: LayerTwins) -> None:
    fd = paths.open_at(here, name)
    try:
        _check_one(fd, trial, path, twins)
    finally:
        os.close(fd)


def _below(path: bytes, prefix: bytes) -> bytes:
    """A path beneath the overlay's root as one beneath the mount's root."""
    if path == prefix:
        return paths.ROOT
    return path if prefix == paths.ROOT else path[len(prefix) + 1 :]


def _other_layers(path: bytes) -> DetachedError:
    return DetachedError(
        f"{quote(path)} of the overlay is not, or not surely, what its layers show where criu"
        " runs: were they moved or changed, or is the overlay from another mount namespace?"
    )


def _has_lasting_inodes(fd: int, mnt_id: int, dev: int) -> bool:
    """Tell whether files have the overlay's own device number: their inodes last then.

    Source: Documentation/filesystems/overlayfs.rst, "Inode properties".
    """
    for held in chain([fd], held_files(mnt_id)):
        facts = kernel.fstat(held)
        if not stat.S_ISDIR(facts.mode) and facts.dev == dev:
            return True
    return False
