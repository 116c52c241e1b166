# SPDX-License-Identifier: GPL-2.0-only
"""From an open file whose name is gone to its record: in CRIU's words a ghost file."""

from __future__ import annotations

import os
import stat

from criu_detached import kernel, paths
from criu_detached.dump.describe import roots
from criu_detached.dump.inodes import inode_of
from criu_detached.dump.observe.handles import open_on
from criu_detached.dump.open_file import OpenFile, handle_of
from criu_detached.errors import DetachedError, quote
from criu_detached.filesystems.types import OVERLAY, by_magic, is_silly_renamed
from criu_detached.images.datafile import DataFileWriter
from criu_detached.images.records import File, Ghost, Inode
from criu_detached.kernel import FileStat
from criu_detached.kernel.fds import link_of
from criu_detached.settings import GHOST_LIMIT, WHERE, Options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from criu_detached.dump.describe.mount import DetachedMount

_BLOCK = 512  # bytes; the unit of st_blocks (stat(2))
_NO_ID = 0xFFFFFFFF  # userns_uid (criu/namespaces.c) of what has none


class GhostDescriber:
    """Describes the deleted files of one dump; their contents go into the data file."""

    def __init__(
        self,
        contents: DataFileWriter,
        options: Callable[[], Options],
        inner_ids: Callable[[int, int], tuple[int, int]],
        restricted: bool,
    ) -> None:
        """Take what it needs.

        Args:
            contents: where contents go.
            options: gives the settings.
            inner_ids: turns owner and group into those of the dumped user namespace.
            restricted: there is one, so tasks make what is in their mount namespace with its
                privileges alone.
        """
        self._contents = contents
        self._options = options
        self._inner_ids = inner_ids
        self._restricted = restricted

    def describe(self, fd: int, file: File, facts: FileStat, mount: DetachedMount) -> Ghost:
        """Describe a deleted file.

        Args:
            fd: the file.
            file: its record; the path is the one that it had.
            facts: of the file.
            mount: its mount.

        Raises:
            DetachedError: it cannot be made again.
        """
        if mount.read_only:
            raise DetachedError(
                "it is deleted, and its filesystem is read-only: it could not be given a name"
                " again, which the restore needs; make the filesystem writable, or close the file"
            )
        if kernel.fstat(fd).is_frozen:
            raise DetachedError(
                "it is deleted, and immutable or append-only: it could not be given a name again,"
                " which the restore needs; use chattr -ia on it, or close it"
            )
        _check_kept(facts, mount)
        self._check_directory(file.path, mount)
        file.handle = handle_of(fd)
        ghost = Ghost(file=file, unnamed=int(_is_unnamed(file)))
        # Some filesystems keep the link count of a deleted directory; it has no other name.
        if facts.nlink and not stat.S_ISDIR(facts.mode):
            alias = _lasting_alias(fd, file, facts, mount)
            if alias is not None:
                ghost.alias = alias
                return ghost
        if stat.S_ISREG(facts.mode):
            self._check_limit(fd)
        ghost.inode = inode_of(OpenFile(fd, facts), self._contents)
        source = mount.record.bind_source
        assert source is not None
        if source.in_namespace:
            ghost.inode.uid, ghost.inode.gid = self._inner_ids(facts.uid, facts.gid)
            if self._restricted:
                _refuse_privileged(ghost.inode, facts)
        return ghost

    def _check_directory(self, path: bytes, mount: DetachedMount) -> None:
        """Refuse what could not get a name where it had one, and lose it again."""
        source = mount.record.bind_source
        assert source is not None
        base, above = mount.root, source.path
        if base < 0:
            base, above, path = mount.source, paths.ROOT, paths.join(source.path, path)
        if base < 0:
            return  # its filesystem is made anew, or supplied
        path, facts = _nearest_directory(base, path)
        where = quote(paths.join(source.mountpoint, paths.join(above, path)))
        if facts.is_frozen:
            raise DetachedError(
                "it is deleted, and was in a directory that is immutable or append-only"
                f" ({where}): the restore has to give it a name there for a moment; use chattr -ia"
                " on that, or close the file"
            )
        if not self._restricted or not source.in_namespace:
            return
        if _NO_ID in self._inner_ids(facts.uid, facts.gid):
            raise DetachedError(
                "it is deleted, and would get its name again from the tasks' user namespace, which"
                f" has no rights over the directory that it was in ({where}): give that to an owner"
                " of the namespace, or close the file"
            )

    def _check_limit(self, fd: int) -> None:
        size, limit = os.fstat(fd).st_blocks * _BLOCK, self._options().ghost_limit
        if size > limit:
            enough = -(-size >> 20)  # MiB
            raise DetachedError(
                f"it is deleted and has {size} bytes on disk, over the limit of {limit}: write"
                f' "{quote(GHOST_LIMIT)} {enough}M" {WHERE}'
            )


def _check_kept(facts: FileStat, mount: DetachedMount) -> None:
    """Refuse what a server would delete for good before a task has it again.

    It is told of regular files alone that they are open, and of directories too late.
    """
    superblock = mount.record.superblock
    assert superblock is not None
    server = by_magic(superblock.magic).server
    if server and not stat.S_ISREG(facts.mode):
        raise DetachedError(
            f"it is deleted, and no regular file: the server of its filesystem ({server}) keeps"
            " those alone while they have no name; close it"
        )


def _nearest_directory(base: int, path: bytes) -> tuple[bytes, FileStat]:
    """The directory that a path beneath a root was in, or the last of those above that is left."""
    while path != paths.ROOT:
        path = paths.split(path)[0]
        try:
            facts = paths.facts_at(base, path)
        except OSError:
            continue  # it is deleted too
        if stat.S_ISDIR(facts.mode):
            return path, facts
    return path, kernel.fstat(base)


def _refuse_privileged(inode: Inode, facts: FileStat) -> None:
    """What is made anew in a user namespace cannot have what takes privileges outside of it."""
    why = ""
    if stat.S_ISBLK(facts.mode) or stat.S_ISCHR(facts.mode):
        why = "it is a device"
    elif _NO_ID in (inode.uid, inode.gid):
        why = f"its owner {facts.uid}:{facts.gid} is not in that namespace"
    for xattr in inode.xattrs:
        if not xattr.name.startswith((b"user.", b"security.selinux")):
            why = f"it has the extended attribute {quote(xattr.name)}"
    if why:
        raise DetachedError(
            f"it is deleted, and would be made anew in the tasks' user namespace, but {why}:"
            " close it"
        )


def _is_unnamed(file: File) -> bool:
    """Tell what was made with O_TMPFILE by the name that the kernel gives it (d_mark_tmpfile)."""
    return stat.S_ISREG(file.mode) and paths.split(file.path)[1] == b"#%d" % file.ino


def _lasting_alias(fd: int, file: File, facts: FileStat, mount: DetachedMount) -> bytes | None:
    """Another name of a file, or nothing where its handle will do; None: no name outlives it."""
    superblock = mount.record.superblock
    assert superblock is not None
    fs_type = by_magic(superblock.magic)
    served = bool(fs_type.server)
    hidden = set()
    for alias in _aliases(fd, facts, mount):
        if served and not _may_be(alias, fd, file, mount):
            continue
        if not served or not is_silly_renamed(alias):
            return alias
        hidden.add(alias)
        # Told anew by the server, now that it has been asked for that name.
        if kernel.fstat(fd).nlink <= len(hidden):
            return None
    if fs_type is OVERLAY and file.handle is None:
        raise DetachedError(
            "its name is deleted, and it has one left that is not to be found in the bind source"
            " (a file of a lower layer keeps its name there, where no path of the overlay leads):"
            " close it"
        )
    if served or file.handle is None:
        raise DetachedError(
            "its name is deleted, and the other one that it still has is not to be found"
            " in the bind source: give it a name there, or close the file"
        )
    return b""


def _may_be(path: bytes, fd: int, file: File, mount: DetachedMount) -> bool:
    """Tell whether a name that shows a deleted file's number may be one of that file's.

    Servers may give one number to several files. To some a node is a name (libfuse), so that hard
    links have other handles.
    """
    try:
        there = paths.open_at(mount.source, path)
    except OSError:
        return False
    try:
        if file.handle is not None and handle_of(there) == file.handle:
            return True
        one, other = kernel.fstat(fd), kernel.fstat(there)
    finally:
        os.close(there)
    alike = (one.mode, one.uid, one.gid, one.size) == (other.mode, other.uid, other.gid, other.size)
    return one.nlink > 1 and alike


def _aliases(fd: int, facts: FileStat, mount: DetachedMount) -> Iterator[bytes]:
    """Yield the names of a file beneath its bind source's root, one perhaps twice."""
    base = link_of(mount.source)
    handle, full = handle_of(fd), b""
    try:
        if handle is not None:
            with open_on(mount.source, handle) as there:
                full = link_of(there)
    except OSError:
        pass
    if full:
        inside = paths.below(full, base)
        if inside is not None and roots.is_at(mount.source, inside, facts):
            yield inside
    yield from roots.names_of_inode(mount.source, facts)
