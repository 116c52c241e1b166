# SPDX-License-Identifier: GPL-2.0-only
"""Overlays: a new superblock over the same layers, once the old one is gone.

Only the old one may write to its upper directory. So the probe mount of a dump is one of the
same layers without an upper directory: it shows the same files and changes nothing.
"""

from __future__ import annotations

import stat
from itertools import chain

from criu_detached import kernel, paths
from criu_detached.dump.describe.roots import SEARCH_LIMIT
from criu_detached.dump.filesystems.probe import ProbeSource, mount_probe, superblock_flags
from criu_detached.dump.filesystems.same_file import SameLayer
from criu_detached.dump.observe.directories import names_in
from criu_detached.dump.observe.processes import held_files, root_by_held
from criu_detached.dump.open_file import OpenFile
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

    from criu_detached.dump.describe.new_mount import NewMount
    from criu_detached.dump.describe.sources import Source
    from criu_detached.dump.observe.machine import Machine

# Options that need an upper directory, or would not let a layer be used twice.
_NOT_FOR_PROBE = {b"index", b"nfs_export", b"fsync"}
# As mount(8) takes it, and as newer kernels show it.
_VOLATILE = {b"volatile", b"fsync=volatile"}


def probe_overlay(new: NewMount, number: int, machine: Machine) -> Iterator[ProbeSource]:
    """Yield, opened, a probe mount that shows what an overlay shows.

    Args:
        new: a mount of the overlay.
        number: for the record.
        machine: what is around the dump.

    Raises:
        DetachedError: the overlay cannot be mounted again, or would not be the same.
    """
    known = new.statmount
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
    probe, layers = _probe(named, options)
    same_file = SameLayer(layers, paths.from_link(known.root_path))
    try:
        _check_held(machine, new.file, probe.fd, same_file)
        record = Filesystem(
            id=number,
            superblock=superblock_of(new.file.fd, b"overlay"),
            source=known.sb_source,
            options=[*superblock_flags(known.sb_flags), *options],
            fresh=1,
            keeps_inodes=int(_has_lasting_inodes(machine, new.file, known.sb_dev)),
            layers=layers.records(),
        )
    except (DetachedError, OSError):
        layers.close()
        probe.close()
        raise
    yield ProbeSource(probe, record, same_file)


def _probe(named: list[tuple[bytes, bytes]], options: list[bytes]) -> tuple[Source, Layers]:
    """Mount the same layers without an upper directory, and see whose the latter is."""
    with namespaces.PrivateNamespace():
        layers = Layers(named)
        try:
            upper = layers.find(UPPER)
            if upper >= 0:
                _check_upper(upper, layers)
            fds = [(LOWER, upper)] if upper >= 0 else []
            fds += [(option, fd) for option, fd in layers.fds if option in (LOWER, DATA)]
            return mount_probe(b"overlay", b"overlay", _options_for_probe(options), fds), layers
        except OSError as error:
            layers.close()
            raise DetachedError(f"the layers of the overlay cannot be mounted: {error}") from error
        except DetachedError:
            layers.close()
            raise


def _options_for_probe(options: list[bytes]) -> list[bytes]:
    found = [b"index=off"]
    for option in options:
        name, _, value = option.partition(b"=")
        if name == b"redirect_dir" and value == b"on":
            found.append(b"redirect_dir=follow")
        elif name == b"uuid" and value != b"off":
            continue  # it is in the upper directory
        elif name not in _NOT_FOR_PROBE:
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


def _check_held(machine: Machine, file: OpenFile, probe: int, same_file: SameLayer) -> None:
    """See that the probe mount shows the held files, and all that a directory leads to."""
    for fd in chain([file.fd], held_files(machine, file.stat.mnt_id)):
        held = OpenFile.of(fd)
        if held.is_marked_deleted:
            continue  # what is deleted is saved
        path = paths.join(same_file.prefix, paths.from_link(held.link))
        _check_one(held.fd, probe, path, same_file)
    directory = root_by_held(machine, file)
    if directory is not None:
        with directory:
            _check_tree(directory, probe, same_file)


def _check_one(fd: int, probe: int, path: bytes, same_file: SameLayer) -> None:
    try:
        shown = paths.open_at(probe, path)
    except OSError as error:
        raise _other_layers(path) from error
    with shown:
        if not same_file.is_one_at(fd, shown, path):
            raise _other_layers(path)


def _check_tree(directory: int, probe: int, same_file: SameLayer) -> None:
    """Compare what a directory of the overlay leads to, up to a limit."""
    queue, seen = [same_file.prefix], 0
    for path in queue:
        inside = _below(path, same_file.prefix)
        try:
            with paths.open_at(directory, inside) as here:
                names = names_in(here)
                _compare_names(names, probe, path)
                queue += _check_entries(here, names, probe, path, same_file)
        except OSError as error:
            raise _other_layers(path) from error
        seen += len(names)
        if seen > SEARCH_LIMIT:
            return


def _compare_names(names: list[bytes], probe: int, path: bytes) -> None:
    with paths.open_at(probe, path) as there:
        if names != names_in(there):
            raise _other_layers(path)


def _check_entries(
    here: int, names: list[bytes], probe: int, path: bytes, same_file: SameLayer
) -> list[bytes]:
    """Compare what is in a directory but directories, whose paths are returned."""
    directories = []
    for name in names:
        entry = paths.join(path, name)
        if stat.S_ISDIR(kernel.stat_beneath(here, name).mode):
            directories.append(entry)
        else:
            with paths.open_at(here, name) as fd:
                _check_one(fd, probe, entry, same_file)
    return directories


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


def _has_lasting_inodes(machine: Machine, file: OpenFile, dev: int) -> bool:
    """Tell whether files have the overlay's own device number: their inodes last then.

    Source: Documentation/filesystems/overlayfs.rst, "Inode properties".
    """
    for held in chain([file.fd], held_files(machine, file.stat.mnt_id)):
        found = kernel.fstat(held)
        if not stat.S_ISDIR(found.mode) and found.dev == dev:
            return True
    return False
