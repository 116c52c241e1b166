# SPDX-License-Identifier: GPL-2.0-only
"""A detached mount of a dump: what its files are asked about, and each kind of mount answers."""

from __future__ import annotations

from criu_detached import kernel
from criu_detached.errors import DetachedError
from criu_detached.filesystems.types import VOLATILE_INODES, WRAPPING_INODES, by_magic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from criu_detached.dump.describe.new_mount import NewMount
    from criu_detached.dump.open_file import OpenFile
    from criu_detached.filesystems.types import FilesystemType
    from criu_detached.images.records import BindSource, File, Ghost, Mount, Superblock
    from criu_detached.kernel import FileStat
    from criu_detached.kernel.fds import Fd
    from criu_detached.paths import Name

_LOCKABLE = (
    kernel.MOUNT_ATTR_RDONLY
    | kernel.MOUNT_ATTR_NOSUID
    | kernel.MOUNT_ATTR_NODEV
    | kernel.MOUNT_ATTR_NOEXEC
)


class DetachedMount:
    """A detached mount, and its record.

    Here is what holds of one that nothing shows: kinds of mounts override it.
    """

    # What is at a path of it can be looked at before the restore.
    shows_files = False

    # The kernel told its id-map, or that it has none, or nothing can be compared with it.
    maps_known = True

    # It comes back as a clone of another mount, which can be attached beside that alone.
    is_clone = True

    # Why its root, deleted by now, cannot come back though the record says that it is there.
    ROOT_IS_THERE = (
        "it is the root of its mount and deleted, but its path in the bind source is"
        " there again: Linux 7.0 or newer tells the two apart"
    )

    def __init__(self, new: NewMount, record: Mount, read_only: bool = False) -> None:
        """Take what is known of it.

        Args:
            new: as it was met.
            record: its record.
            read_only: the superblock is, not the mount.
        """
        self.record = record
        self.read_only = read_only
        self._position = new.position

    @property
    def superblock(self) -> Superblock:
        """Of its filesystem."""
        assert self.record.superblock is not None
        return self.record.superblock

    @property
    def fs_type(self) -> FilesystemType:
        """Type of its filesystem."""
        return by_magic(self.superblock.magic)

    @property
    def has_sure_numbers(self) -> bool:
        """Whether an inode number stands for one file: see WRAPPING_INODES."""
        return not self.fs_type.has(WRAPPING_INODES)

    @property
    def bind_source(self) -> BindSource:
        """Where its root is shown."""
        assert self.record.bind_source is not None
        return self.record.bind_source

    # --- Files on it ---------------------------------------------------------------------

    def rooted(self, file: OpenFile) -> OpenFile:
        """Return a file with its path from the mount's root: see Position."""
        return self._position.rooted(file)

    def note(self, file: OpenFile) -> None:
        """Take note of a file that is recorded: see Position."""
        self._position.note(file)

    def note_directory_held(self, fd: int) -> None:
        """Take note that a task reaches all of the mount.

        Args:
            fd: its root, or a directory of it; nothing is mounted on what is seen from there.
        """

    def locate(self, file: OpenFile) -> Name:
        """Say where a file is, and whether that name is gone.

        Args:
            file: with its path from the mount's root.

        Raises:
            DetachedError: the restore would not find it there.
        """
        raise NotImplementedError

    def is_hard_link(self, file: OpenFile, known: File) -> bool:
        """Tell whether a file is one that is known by another path.

        Args:
            file: the file.
            known: record of one with the same inode number.
        """
        # No handle to compare: trust the inode number unless the filesystem reuses them.
        return self.has_sure_numbers and not self.fs_type.has(VOLATILE_INODES)

    def save(self, file: OpenFile, record: File) -> None:
        """Save a file that nothing will show at the restore.

        Args:
            file: the file, which has a name.
            record: its record.

        Raises:
            DetachedError: it cannot be saved.
        """

    def save_other_name(self, file: OpenFile) -> None:
        """Save a file that is recorded, and is met again by another name.

        Args:
            file: the file.

        Raises:
            DetachedError: it cannot be saved.
        """

    def save_at_end(self, file: OpenFile, record: File) -> bool:
        """Put a deleted file off until finish(), which knows what other names are saved.

        Args:
            file: the file.
            record: its record.

        Returns:
            False: nothing is put off.
        """
        return False

    def check_socket_directory(self, path: bytes) -> None:
        """See that the restore can bind a socket in a directory.

        Args:
            path: of the directory, beneath the mount's root.

        Raises:
            DetachedError: it will not be there.
        """

    # --- Deleted files, in the source ----------------------------------------------------

    def nearest_directory(self, path: bytes) -> tuple[FileStat, bytes] | None:
        """Look for the directory that a deleted file was in, where the restore will name it again.

        Args:
            path: of the file, beneath the mount's root.

        Returns:
            Stat of that directory, or of the last above that is left, and its path for messages;
            None: there is nothing to be seen before the restore.
        """
        return None

    def names_in_source(self, file: OpenFile) -> Iterator[bytes]:
        """Yield the names of a file beneath the root of its bind source, one perhaps twice.

        Args:
            file: the file.
        """
        yield from ()

    def open_in_source(self, path: bytes) -> Fd:
        """Open what such a name leads to, O_PATH; raises OSError."""
        raise NotImplementedError

    # --- The mount itself ----------------------------------------------------------------

    @property
    def plain_root(self) -> Fd | None:
        """Its root in the source, if device and inode tell whether a file is there; else None."""
        return None

    @property
    def in_namespace(self) -> bool:
        """Whether the restore will clone it in a dumped mount namespace."""
        return False

    def open_stand_in(self) -> Fd | None:
        """Open something else on a mount of the namespace that it is cloned in; None: in none."""
        return None

    def confine(self) -> None:
        """Take from the mount what a user namespace must not get with it.

        Raises:
            DetachedError: it would get that by mount_setattr(2). Whoever has the fd of an
                anonymous tree may take its restrictions away, unless these are locked, as those
                of mounts are that a user namespace was given (lock_mnt_tree, fs/namespace.c).
        """
        if self.record.anonymous and self.record.attr & _LOCKABLE:
            raise DetachedError(
                "it is on an anonymous mount with restrictions (ro, nosuid, nodev, noexec) and"
                " would come from where criu runs; the dumped tasks, in a user namespace, could"
                " lift them: mount its filesystem in their mount namespace, or close the fd of its"
                " tree"
            )

    def way_back(self) -> str:
        """Say for the log where the mount's root will come from."""
        raise NotImplementedError

    def finish(self) -> Iterator[Ghost]:
        """Save what only the end shows to be needed.

        Yields:
            The records of the deleted files that were put off.

        Raises:
            DetachedError: something cannot be saved.
        """
        yield from ()
