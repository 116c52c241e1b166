# SPDX-License-Identifier: GPL-2.0-only
"""Mounts that the user supplies (the settings ``source`` and ``map``), at restore.

What is supplied goes before all that the images say. It is opened where criu runs, by
whatever path the user gives; what the images add to that path stays beneath it.
"""

from __future__ import annotations

import os

from criu_detached import kernel, paths
from criu_detached.criu import log
from criu_detached.errors import DetachedError, quote, why
from criu_detached.images.records import SUPPLIED, BindSource, Ghost, Mount
from criu_detached.kernel import statmount
from criu_detached.settings import (
    IMAGES_FILE,
    OPTION,
    SOURCE,
    SYSTEM_FILE,
    Options,
    Source,
    place_of,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.criu.host import Host
    from criu_detached.images.record_reader import Records

# Name of the image of a user namespace, up to its number (imgset_template, criu/image-desc.c)
_USERNS_IMAGE = "userns-"


class Supply:
    """Where the root of one mount is."""

    __slots__ = ("beneath", "source")

    def __init__(self, source: Source, beneath: bytes) -> None:
        self.source = source
        self.beneath = beneath  # the path that the setting gives, "." for itself

    @property
    def path(self) -> bytes:
        """The whole path."""
        return place_of(BindSource(mountpoint=self.source.path, path=self.beneath))

    def open(self, mount: Mount) -> int:
        """Open it.

        Args:
            mount: its record; it is told what id-map the source has.

        Returns:
            An O_PATH fd, the caller's.

        Raises:
            DetachedError: it is not there.
        """
        try:
            fd = os.open(self.source.path, kernel.O_PATH)
            if self.beneath != paths.ROOT:
                top = fd
                try:
                    fd = paths.open_mountpoint(top, self.beneath)
                finally:
                    os.close(top)
        except OSError as error:
            raise DetachedError(
                f"{self.source.where}: {quote(self.path)}, the source for mount {mount.mnt_id},"
                f" cannot be opened: {why(error)}"
            ) from error
        assert mount.bind_source is not None
        mount.bind_source.id_mapped = int(_has_id_map(fd, mount))
        return fd


def find_supplies(records: Records, host: Host) -> dict[int, Supply]:
    """Find what the settings say of the mounts, and change the records to that.

    Args:
        records: of the images; mounts that are supplied have that origin afterwards.
        host: gives the image directory, and criu's options.

    Returns:
        What is supplied, by mount id.

    Raises:
        DetachedError: the settings are malformed, name a mount that is not there, or leave
            one out that is to be supplied.
    """
    options = Options(host.criu.image_dir(), host.criu.plugin_options())
    _refuse_unknown(records, options)
    found = {}
    for mnt_id, mount in records.mounts.items():
        given = options.source_of(mount)
        if given is not None:
            found[mnt_id] = Supply(*given)
    _refuse_missing([mount for mnt_id, mount in records.mounts.items() if mnt_id not in found])
    used = {mount.filesystem for mount in records.mounts.values()}
    for mnt_id, supply in found.items():
        mount = records.mounts[mnt_id]
        ghosts = [ghost for key, ghost in records.ghosts.items() if key[0] == mnt_id]
        _refuse_deleted(mount, ghosts, host)
        _say(mount, supply, by_id=mnt_id in options.sources)
        _replace(mount, ghosts, supply)
    # Filesystems that only supplied mounts would be on are not made or mounted.
    for number in used - {mount.filesystem for mount in records.mounts.values()}:
        records.filesystems.pop(number, None)
        records.nodes.pop(number, None)
    return found


def _refuse_unknown(records: Records, options: Options) -> None:
    for mnt_id in options.sources.keys() - records.mounts.keys():
        where = options.sources[mnt_id].where
        text = f"{where}: {quote(SOURCE)} is given for mount {mnt_id}, which the images do not know"
        if where != SYSTEM_FILE:
            raise DetachedError(f"{text}: see criu-detached show")
        log.warn(text)  # it may be meant for other images


def _refuse_missing(others: list[Mount]) -> None:
    missing = [mount for mount in others if mount.origin == SUPPLIED]
    if not missing:
        return
    mount = missing[0]
    assert mount.superblock is not None  # check_mount
    root = f", root {quote(mount.root)}" if mount.root else ""
    more = f" (and {len(missing) - 1} more, see criu-detached show)" if missing[1:] else ""
    setting = quote(SOURCE)
    raise DetachedError(
        f"mount {mount.mnt_id} ({quote(mount.superblock.fs_type)}{root}) is to be supplied{more}:"
        f' write "{setting} {mount.mnt_id} PATH" to {IMAGES_FILE} in the image directory, where'
        f" PATH is its root, or give {OPTION} criu_detached.{setting}={mount.mnt_id}:PATH"
    )


def _refuse_deleted(mount: Mount, ghosts: list[Ghost], host: Host) -> None:
    """Refuse what can be made in the recorded place only."""
    source = mount.bind_source
    assert source is not None  # check_mount
    if mount.root_deleted:
        raise DetachedError(
            f"the root of mount {mount.mnt_id} was deleted: the mount can't be supplied"
        )
    if source.in_namespace and mount.anonymous and mount.attr and has_userns(host):
        raise DetachedError(
            f"mount {mount.mnt_id} is anonymous and of tasks in a user namespace, who could lift"
            " its restrictions (ro, nosuid, ...): the mount can't be supplied"
        )
    if source.in_namespace and any(ghost.inode for ghost in ghosts) and has_userns(host):
        raise DetachedError(
            f"deleted files of mount {mount.mnt_id} are made by a task in its user namespace:"
            " the mount can't be supplied"
        )


def has_userns(host: Host) -> bool:
    """Tell whether the images have a user namespace; CRIU dumps one at most."""
    return any(name.startswith(_USERNS_IMAGE) for name in os.listdir(host.criu.image_dir()))


def _say(mount: Mount, supply: Supply, *, by_id: bool) -> None:
    text = f"mount {mount.mnt_id} is supplied: {quote(supply.path)} ({supply.source.where})"
    if supply.source.where == SYSTEM_FILE and by_id:
        log.warn(f"{text}; an id there is good for these images alone")
    else:
        log.info(text)


def _replace(mount: Mount, ghosts: list[Ghost], supply: Supply) -> None:
    """Let a record say that the mount is supplied; names of files are beneath its root then."""
    assert mount.bind_source is not None  # check_mount
    root = mount.bind_source.path
    for ghost in ghosts:
        if ghost.alias and root != paths.ROOT:
            ghost.alias = paths.below(b"/" + ghost.alias, b"/" + root) or b""
    mount.origin = SUPPLIED
    mount.filesystem = 0
    mount.bind_source = BindSource(mountpoint=supply.path, path=paths.ROOT)


def _has_id_map(fd: int, mount: Mount) -> bool:
    """Tell whether the source has the mount's id-map already; a clone will have it too."""
    wanted = (mount.uid_map, mount.gid_map)
    try:
        return wanted != ([], []) and statmount.id_maps(fd) == wanted
    except OSError:
        return False
