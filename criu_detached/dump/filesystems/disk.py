# SPDX-License-Identifier: GPL-2.0-only
"""Filesystems on block devices, at dump: the probe mount.

It is made in a mount namespace of this process alone. The kernel gives the superblock that is
there already (sget_fc, fs/super.c), so the probe changes nothing, and it shows the options and
the files.
"""

from __future__ import annotations

import os

from criu_detached.criu import log
from criu_detached.dump.filesystems.devices import check_living, describe_device, devices_under
from criu_detached.dump.filesystems.probe import ProbeSource, mount_probe
from criu_detached.errors import DetachedError, quote
from criu_detached.filesystems.devices import needs_device
from criu_detached.filesystems.options import (
    NAME_DEVICES,
    NOT_SEEN,
    needed_options,
    read_options,
    strip_value,
)
from criu_detached.filesystems.superblock import superblock_of
from criu_detached.images.records import BlockDevice, Filesystem
from criu_detached.kernel import namespaces, new_mounts
from criu_detached.kernel.mountinfo import MountInfo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from criu_detached.dump.describe.new_mount import NewMount
    from criu_detached.dump.describe.sources import Source
    from criu_detached.dump.observe.machine import Machine
    from criu_detached.kernel.statmount import StatMount


def probe_disk(new: NewMount, number: int, machine: Machine) -> Iterator[ProbeSource]:
    """Yield, opened, the probe mount of a filesystem, if it lies on a block device.

    Args:
        new: a mount of it.
        number: for the record.
        machine: what is around the dump.

    Raises:
        DetachedError: it lies on one, and cannot be mounted again.
    """
    known, fs = new.statmount, new.file.statfs
    types = [known.fs_type] if known else new.file.fs_type.names
    types = [name for name in types if needs_device(name)]
    if not types:
        return
    for numbers in devices_under(new.dev, fs):
        found = [describe_device(one) for one in numbers]
        for device in found:
            check_living(new.file.fd, fs, device)
        source = _try(types, found, _read_only(known, fs.flags), number)
        # Where the type is not known the device may be that of a subvolume of btrfs.
        if source.info.dev != new.dev and (os.major(new.dev) or known):
            source.close()
            continue
        yield source


def _read_only(known: StatMount | None, flags: int) -> list[bool]:
    """Which ways to mount lead to the living superblock: it has to be asked for as it is.

    A kernel that does not say so gets asked for less first. What does not fit is EBUSY.
    """
    if known:
        return [known.read_only]
    return [True, False] if flags & os.ST_RDONLY else [False]


def _try(
    types: list[bytes], found: list[BlockDevice], ways: list[bool], number: int
) -> ProbeSource:
    path = found[0].path
    refusal: OSError | None = None
    try:
        with namespaces.PrivateNamespace():
            for fs_type, read_only in [(name, way) for name in types for way in ways]:
                options = [b"ro" if read_only else b"rw", *needed_options(fs_type, [])]
                try:
                    source = mount_probe(fs_type, path, options)
                except OSError as error:
                    refusal = refusal or error
                    continue
                return _recorded(source, found, number)
    except OSError as error:
        raise DetachedError(
            f"can't make a mount namespace to look into {quote(path)}: {error}"
        ) from error
    raise DetachedError(
        f"its block device {quote(path)} cannot be mounted beside what is mounted: {refusal}"
    )


def _recorded(probe: Source, found: list[BlockDevice], number: int) -> ProbeSource:
    """Give a probe mount its record."""
    try:
        record = Filesystem(
            id=number,
            superblock=superblock_of(probe.fd, probe.info.fs_type),
            source=found[0].path,
            options=_kept_options(probe.info),
            devices=found,
        )
    except DetachedError:
        probe.close()
        raise
    return ProbeSource(probe, record)


def _kept_options(info: MountInfo) -> list[bytes]:
    """The options that a superblock shows, if a mount takes them.

    Raises:
        DetachedError: it does not.
    """
    shown = read_options(info)
    for option in shown:
        if strip_value(option) in NAME_DEVICES:
            raise DetachedError(
                f"its filesystem has a device of its own for its log ({quote(option)}): that is"
                " not looked for at a restore"
            )
    for option, error in new_mounts.refused_options(info.fs_type, shown):
        if strip_value(option) not in NOT_SEEN:
            raise DetachedError(
                f"its filesystem has the option {quote(option)}, which no mount is given: {error}"
            )
        log.warn(f"the option {quote(option)} of a filesystem is not kept: {error}")
        shown.remove(option)
    return shown
