# SPDX-License-Identifier: GPL-2.0-only
"""The bind source of a mount: it is opened, has to be the one of the dump, and is cloned."""

from __future__ import annotations

import stat

from criu_detached import kernel, paths
from criu_detached.criu import log
from criu_detached.errors import DetachedError, quote, why
from criu_detached.filesystems.superblock import is_same, superblock_of
from criu_detached.filesystems.types import VOLATILE_INODES, by_magic
from criu_detached.kernel import statmount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.images.records import Mount, Superblock
    from criu_detached.kernel.fds import Fd

_TYPE_NAMES = {
    stat.S_IFDIR: "a directory",
    stat.S_IFREG: "a regular file",
    stat.S_IFLNK: "a symlink",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFSOCK: "a socket",
}


def type_name(mode: int) -> str:
    """Name the file type of a mode, for messages."""
    return _TYPE_NAMES.get(stat.S_IFMT(mode), "a file of an unknown type")


class Source:
    """The source of one mount, as CRIU's process sees it; other kinds override what differs."""

    def __init__(self, mount: Mount, base: int, same_boot: bool) -> None:
        """Take the record; nothing is opened yet.

        Args:
            mount: its record, checked.
            base: fd of the root that the source's mountpoint is reached from; the caller's.
            same_boot: the dump was made on this very boot of the system.
        """
        source = mount.bind_source
        assert source is not None  # check_mount
        self.mount = mount
        self.path = source.path  # of the mount's root, beneath the source's
        self.base = base
        self.same_boot = same_boot
        # For messages
        self.where = quote(paths.join(source.mountpoint.rstrip(b"/") or b"/", source.path))

    def open_top(self) -> Fd:
        """Open the root of the source.

        Raises:
            DetachedError: it is not there.
        """
        assert self.mount.bind_source is not None
        try:
            return paths.open_mountpoint(self.base, self.mount.bind_source.mountpoint)
        except OSError as error:
            raise self._cannot_open(error) from error

    def open_root(self, top: int, path: bytes) -> Fd:
        """Open the mount's root.

        Args:
            top: the root of the source.
            path: beneath it.

        Raises:
            DetachedError: it is not there.
        """
        try:
            return paths.open_at(top, path)
        except OSError as error:
            raise self._cannot_open(error) from error

    def _cannot_open(self, error: OSError) -> DetachedError:
        return DetachedError(
            f"the bind source {self.where} cannot be opened ({why(error)}):"
            " mount its filesystem there again"
        )

    # --- is it the one of the dump? ---

    def check_type(self, root: int) -> None:
        """Refuse a root of another type.

        Raises:
            DetachedError: it is of another one.
        """
        mode = kernel.fstat(root).mode
        wanted = self.mount.root_type
        if stat.S_IFMT(mode) != wanted:
            raise DetachedError(
                f"the bind source {self.where} is {type_name(mode)}, it was {type_name(wanted)}"
            )

    def check_superblock(self, fd: int) -> bool:
        """Refuse another filesystem.

        Args:
            fd: something on it.

        Returns:
            Whether inode numbers are those of the dump.

        Raises:
            DetachedError: it is another one.
        """
        recorded = self.mount.superblock
        assert recorded is not None  # check_mount
        found = superblock_of(fd, recorded.fs_type)
        self._refuse_type(recorded, found)
        same = is_same(recorded, found, self.same_boot)
        if not same:
            self._refuse_instance(recorded)
            log.warn(
                f"the bind source {self.where} is on another filesystem"
                + (f" (type {found.magic:#x})" if found.magic != recorded.magic else "")
                + f" than at the dump ({quote(recorded.fs_type)}): files are found by their paths,"
                " and their inodes are not compared"
            )
        return same and not by_magic(found.magic).has(VOLATILE_INODES)

    def _refuse_type(self, recorded: Superblock, found: Superblock) -> None:
        """Refuse a filesystem of another type."""
        if found.magic != recorded.magic:
            raise DetachedError(
                f"the bind source {self.where} is on another filesystem (type {found.magic:#x}),"
                f" it was on {quote(recorded.fs_type)} ({recorded.magic:#x}): mount the right one"
                " there"
            )

    def _refuse_instance(self, recorded: Superblock) -> None:
        """Refuse another filesystem of the same type, where the right one must still be there.

        A restored namespace may have its filesystems recreated.
        """
        assert self.mount.bind_source is not None
        if self.same_boot and not self.mount.bind_source.in_namespace:
            raise DetachedError(
                f"the bind source {self.where} is on another {quote(recorded.fs_type)} filesystem"
                ' than at the dump: mount the right one there, or tell by the setting "map" that'
                " it is this one"
            )

    def is_same_root(self, root: int) -> bool:
        """Tell whether the root is the dumped directory, or one that was recreated with all in it.

        An engine recreates a volume from an archive, and so does a user who provides a copy.

        Args:
            root: fd of the mount's root, whose filesystem is the dumped one.
        """
        recorded = self.mount.root_handle
        if recorded is None:
            return True
        try:
            same = kernel.name_to_handle(root) == (recorded.type, recorded.bytes)
        except OSError:
            return True
        if not same:
            log.warn(
                f"the bind source {self.where} is another directory than at the dump: files are"
                " found by their paths, and their inodes are not compared"
            )
        return same

    def check_id_map(self, root: int) -> None:
        """Refuse another id-map of the source than the dump reckoned with: the clone has it.

        Args:
            root: fd of something on the source.

        Raises:
            DetachedError: it is another one, or the kernel does not tell.
        """
        assert self.mount.bind_source is not None
        id_mapped = self.mount.bind_source.id_mapped
        wanted = self._id_maps_here() if id_mapped else ([], [])
        try:
            # Before Linux 7.0 the dump knows the id-maps of anonymous mounts alone.
            tell = statmount.attached_id_maps if self.mount.anonymous else statmount.id_maps
            found = tell(root)
        except OSError as error:
            if id_mapped:
                raise DetachedError(
                    f"the bind source {self.where} was id-mapped; whether it is, Linux 7.0 or"
                    " newer tells"
                ) from error
            return
        if found != wanted:
            raise DetachedError(f"the bind source {self.where} has another id-map than at the dump")

    def _id_maps_here(self) -> tuple[list[bytes], list[bytes]]:
        """Return the recorded id-maps as statmount(2) shows them to this process."""
        return self.mount.uid_map, self.mount.gid_map

    # --- its clone ---

    def clone(self, root: int) -> Fd:
        """Clone the mount of a directory or file; returns a tree fd.

        Args:
            root: fd of what becomes the root of the clone.

        Raises:
            DetachedError: the kernel refuses it.
        """
        try:
            return self._clone(root)
        except OSError as error:
            raise DetachedError(f"can't clone the bind source {self.where}: {error}") from error

    def _clone(self, root: int) -> Fd:
        return kernel.clone_mount(root)

    def set_flags(
        self, tree: int, attr_set: int, attr_clr: int, userns: int = -1, propagation: int = 0
    ) -> None:
        """Call mount_setattr(2) on a clone.

        Args:
            tree: its tree fd.
            attr_set: MOUNT_ATTR_*.
            attr_clr: likewise.
            userns: fd of a user namespace, for MOUNT_ATTR_IDMAP.
            propagation: MS_*; 0 leaves it.

        Raises:
            DetachedError: the kernel refuses it.
        """
        try:
            kernel.mount_setattr(tree, attr_set, attr_clr, userns, propagation)
        except OSError as error:
            raise DetachedError(
                f"can't give the clone of {self.where} the attributes {attr_set:#x}: {why(error)}"
            ) from error
