# SPDX-License-Identifier: GPL-2.0-only
"""Mounts whose source the user provides, by the settings ``source`` and ``map``, at restore.

That goes before all that the images say. It is opened where criu runs, by whatever path the user
gives; what the images add to that path stays beneath it.
"""

from __future__ import annotations

import os

from criu_detached import kernel, paths
from criu_detached.criu import log
from criu_detached.errors import DetachedError, quote, why
from criu_detached.images.records import SUPPLIED, BindSource, Ghost, Mount
from criu_detached.kernel import statmount
from criu_detached.kernel.fds import Fd
from criu_detached.restore.context import has_userns
from criu_detached.restore.source import Source
from criu_detached.settings import IMAGES_FILE, OPTION, SOURCE, SYSTEM_FILE, place_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.criu.criu import Criu
    from criu_detached.images.record_reader import Records
    from criu_detached.images.records import Superblock
    from criu_detached.settings import GivenPath, Options


class UserProvided:
    """Where the root of one mount is, as the user says."""

    __slots__ = ("beneath", "given")

    def __init__(self, given: GivenPath, beneath: bytes) -> None:
        """Take what the settings say.

        Args:
            given: the path that the setting gives.
            beneath: what the record adds to it, "." for nothing.
        """
        self.given = given
        self.beneath = beneath

    @property
    def path(self) -> bytes:
        """The whole path."""
        return place_of(BindSource(mountpoint=self.given.path, path=self.beneath))

    def open(self, mount: Mount) -> Fd:
        """Open it.

        Args:
            mount: its record; it is told what id-map the source has.

        Returns:
            An O_PATH fd.

        Raises:
            DetachedError: it is not there.
        """
        try:
            fd = self._open()
        except OSError as error:
            raise DetachedError(
                f"{self.given.where}: {quote(self.path)}, the source for mount {mount.mnt_id},"
                f" cannot be opened: {why(error)}"
            ) from error
        assert mount.bind_source is not None  # check_mount
        mount.bind_source.id_mapped = int(_has_id_map(fd, mount))
        return fd

    def _open(self) -> Fd:
        top = Fd.open(self.given.path, kernel.O_PATH)
        if self.beneath == paths.ROOT:
            return top
        with top:
            return paths.open_mountpoint(top, self.beneath)

    @staticmethod
    def source_of(mount: Mount, root: int, same_boot: bool) -> Source:
        """Return what a mount is cloned from.

        Args:
            mount: its record.
            root: fd of what open() has opened; it stays the caller's.
            same_boot: the dump was made on this very boot of the system.
        """
        return _UserProvidedSource(mount, root, same_boot)


class _UserProvidedSource(Source):
    """A source that the user has chosen, who may know better than the images."""

    def __init__(self, mount: Mount, root: int, same_boot: bool) -> None:
        super().__init__(mount, root, same_boot)
        self.where += f" (supplied for mount {mount.mnt_id})"

    def open_top(self) -> Fd:
        """Open the root again that the user has given."""
        return Fd(os.dup(self.base))

    def _refuse_type(self, recorded: Superblock, found: Superblock) -> None:
        """Take any type."""

    def _refuse_instance(self, recorded: Superblock) -> None:
        """Take any filesystem."""


def find_provided(records: Records, options: Options, criu: Criu) -> dict[int, UserProvided]:
    """Find what the settings say of the mounts, and change the records to that.

    Args:
        records: of the images; mounts that are user-provided have that origin afterwards.
        options: the settings.
        criu: gives the image directory.

    Returns:
        What is provided, by mount id.

    Raises:
        DetachedError: the settings name a mount that is not there, or leave one out that the user
            has to provide.
    """
    _refuse_unknown(records, options)
    found = {}
    for mnt_id, mount in records.mounts.items():
        given = options.source_of(mount)
        if given is not None:
            found[mnt_id] = UserProvided(*given)
    _refuse_missing([mount for mnt_id, mount in records.mounts.items() if mnt_id not in found])
    used = {mount.filesystem for mount in records.mounts.values()}
    for mnt_id, provided in found.items():
        mount = records.mounts[mnt_id]
        ghosts = [ghost for key, ghost in records.ghosts.items() if key[0] == mnt_id]
        _refuse_deleted(mount, ghosts, criu)
        _say(mount, provided, by_id=mnt_id in options.sources)
        _replace(mount, ghosts, provided)
    # Filesystems that only user-provided mounts would be on are not made or mounted.
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


def _refuse_deleted(mount: Mount, ghosts: list[Ghost], criu: Criu) -> None:
    """Refuse what can be made in the recorded place only."""
    source = mount.bind_source
    assert source is not None  # check_mount
    if mount.root_deleted:
        raise DetachedError(
            f"the root of mount {mount.mnt_id} was deleted: the mount can't be supplied"
        )
    if source.in_namespace and mount.anonymous and mount.attr and has_userns(criu):
        raise DetachedError(
            f"mount {mount.mnt_id} is anonymous and of tasks in a user namespace, who could lift"
            " its restrictions (ro, nosuid, ...): the mount can't be supplied"
        )
    if source.in_namespace and any(ghost.inode for ghost in ghosts) and has_userns(criu):
        raise DetachedError(
            f"deleted files of mount {mount.mnt_id} are made by a task in its user namespace:"
            " the mount can't be supplied"
        )


def _say(mount: Mount, provided: UserProvided, *, by_id: bool) -> None:
    text = f"mount {mount.mnt_id} is supplied: {quote(provided.path)} ({provided.given.where})"
    if provided.given.where == SYSTEM_FILE and by_id:
        log.warn(f"{text}; an id there is good for these images alone")
    else:
        log.info(text)


def _replace(mount: Mount, ghosts: list[Ghost], provided: UserProvided) -> None:
    """Let a record say that the mount is user-provided; names are beneath its root then."""
    assert mount.bind_source is not None  # check_mount
    root = mount.bind_source.path
    for ghost in ghosts:
        if ghost.alias and root != paths.ROOT:
            ghost.alias = paths.below(b"/" + ghost.alias, b"/" + root) or b""
    mount.origin = SUPPLIED
    mount.filesystem = 0
    mount.bind_source = BindSource(mountpoint=provided.path, path=paths.ROOT)


def _has_id_map(fd: int, mount: Mount) -> bool:
    """Tell whether the source has the mount's id-map already; a clone will have it too."""
    wanted = (mount.uid_map, mount.gid_map)
    try:
        return wanted != ([], []) and statmount.id_maps(fd) == wanted
    except OSError:
        return False
