# SPDX-License-Identifier: GPL-2.0-only
"""The files of a filesystem in memory, as they are saved: each inode once, with all its names.

Its inode numbers may repeat (see WRAPPING_INODES), so a file that has the number of a saved one is
looked at more closely.
"""

from __future__ import annotations

import os
import stat

from criu_detached import kernel, paths
from criu_detached.dump.inodes import inode_of
from criu_detached.dump.open_file import OpenFile
from criu_detached.errors import DetachedError, quote, why
from criu_detached.filesystems.idmap import unmap_acl, unmap_id
from criu_detached.images.records import Node

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.dump.context import DumpContext
    from criu_detached.dump.open_file import Identity
    from criu_detached.images.records import Inode, Mount

_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NOATIME

# What stands for an owner that an id-map has no place for (/proc/sys/kernel/overflowuid).
_OVERFLOW_ID = 65534
_ACL = b"system.posix_acl_"


class MemoryNodes:
    """What is saved of one filesystem in memory."""

    def __init__(self, number: int, context: DumpContext) -> None:
        """Begin with nothing.

        Args:
            number: of the filesystem's record.
            context: of the dump.
        """
        self._number = number
        self._context = context
        # The filesystem will belong to the host's user namespace, so nothing in it may give a task
        # of another one what it has not.
        self._restricted = context.criu.dumps_user_namespace()
        self._saved: dict[int, list[_Saved]] = {}  # by inode number
        self._awaited: set[int] = set()  # inode numbers
        self.directories: set[bytes] = set()  # that are saved

    def close(self) -> None:
        """Let go of what is held."""
        for saved in self._saved.values():
            for one in saved:
                one.close()

    def path_of(self, file: OpenFile) -> bytes:
        """Return the path that a file is saved by, whatever its name is; empty: it is not saved.

        Args:
            file: one that a task holds. If it was not saved as such, it has to be awaited.
        """
        saved = self._saved.get(file.stat.ino, [])
        return next((one.path for one in saved if one.is_of(file)), b"")

    def await_name(self, file: OpenFile) -> None:
        """Have path_of() tell whether a file is in a tree that is saved from now on.

        Args:
            file: one with a name that is not known.
        """
        self._awaited.add(file.stat.ino)

    def _find(self, file: OpenFile, path: bytes) -> _Saved | None:
        """What is saved of a file that has a name, by that or another one."""
        for one in self._saved.get(file.stat.ino, ()):
            if path in one.names:
                return one
            # A name leads to one file, and a directory has no other.
            if file.stat.nlink > 1 and not file.is_directory and one.is_of(file):
                return one
        return None

    def save(self, file: OpenFile, path: bytes, mount: Mount) -> None:
        """Save a file that a task holds or watches, or its name; of a directory itself alone.

        Args:
            file: the file.
            path: in the filesystem.
            mount: that it is on.

        Raises:
            DetachedError: it cannot be saved.
        """
        known = self._find(file, path)
        if known is not None:
            self._save_name(known, path, file.stat.mode)
            return
        self._awaited.add(file.stat.ino)
        if not stat.S_ISREG(file.stat.mode) or not kernel.is_readable(file.fd):
            self._save(file, path, mount)
            return
        # To open it once more would break a lease that the task may have.
        position = os.lseek(file.fd, 0, os.SEEK_CUR)
        try:
            self._save(file, path, mount, readable=True)
        finally:
            os.lseek(file.fd, position, os.SEEK_SET)

    def save_tree(self, top: int, root: bytes, mount: Mount) -> None:
        """Save a directory and what is in it, the near before the far.

        Args:
            top: fd of the directory.
            root: its path in the filesystem.
            mount: that it is on.

        Raises:
            DetachedError: something in it cannot be saved.
        """
        queue = [paths.ROOT]
        for here in queue:
            path = paths.join(root, here)
            try:
                names = self._save_directory(top, here, path, mount)
            except OSError as error:
                raise DetachedError(
                    f"a filesystem in memory cannot be saved ({why(error)}): {quote(path)}"
                ) from error
            queue += [paths.join(here, name) for name in names]

    def _save_directory(self, top: int, here: bytes, path: bytes, mount: Mount) -> list[bytes]:
        """Save a directory, and what is in it but directories, whose names are returned."""
        fd, found = kernel.open_beneath(top, here, _READ | os.O_DIRECTORY)
        self.directories.add(path)
        directories = []
        with fd:
            file = OpenFile(fd, found)
            if self._find(file, path) is None:
                self._save(file, path, mount, readable=True)
            with os.scandir(fd) as entries:
                for entry in entries:
                    name = os.fsencode(entry.name)
                    if entry.is_dir(follow_symlinks=False):
                        directories.append(name)
                    else:
                        saved = entry.inode() in self._saved
                        readable = entry.is_file(follow_symlinks=False) and not saved
                        self._save_entry(fd, name, paths.join(path, name), mount, readable)
        return directories

    def _save_entry(
        self, directory: int, name: bytes, path: bytes, mount: Mount, readable: bool
    ) -> None:
        """Save what is in a directory, and is none; only regular files are opened for reading."""
        how = _READ if readable else kernel.O_PATH | kernel.O_NOFOLLOW
        fd, found = kernel.open_beneath(directory, name, how)
        with fd:
            file = OpenFile(fd, found)
            known = self._find(file, path)
            if known is None:
                self._save(file, path, mount, readable)
            else:
                self._save_name(known, path, found.mode)

    def _save_name(self, saved: _Saved, path: bytes, mode: int) -> None:
        """Save a name of a file that is saved, unless that is, too."""
        if path not in saved.names:
            saved.names.add(path)
            node = Node(filesystem=self._number, path=path, mode=mode, same_as=saved.path)
            self._context.records.node(node)

    def _save(self, file: OpenFile, path: bytes, mount: Mount, readable: bool = False) -> None:
        mode = file.stat.mode
        if self._restricted and (gives := _gives_privilege(mode)):
            raise DetachedError(
                f"{quote(path)} of a filesystem in memory is {gives}, and the filesystem would be"
                " made anew outside of the tasks' user namespace: remove it"
            )
        inode = inode_of(file, self._context.contents, readable)
        if mount.uid_map or mount.gid_map:
            _unmap(inode, mount, path)
        node = Node(filesystem=self._number, path=path, mode=mode, rdev=file.stat.rdev, inode=inode)
        self._context.records.node(node)
        saved = _Saved(path, file.identity if self._may_be_met_again(file) else None)
        self._saved.setdefault(file.stat.ino, []).append(saved)

    def _may_be_met_again(self, file: OpenFile) -> bool:
        """Tell whether a file may be met by another name than the one that it is saved by."""
        return not file.is_directory and (file.stat.nlink > 1 or file.stat.ino in self._awaited)


class _Saved:
    """A file that is saved."""

    __slots__ = ("_identity", "names", "path")

    def __init__(self, path: bytes, identity: Identity | None) -> None:
        self.path = path  # in the filesystem
        self.names = {path}  # those that are saved
        self._identity = identity  # None: it has no other name

    def is_of(self, file: OpenFile) -> bool:
        """Tell whether it is of that file, which has its inode number."""
        return self._identity is not None and self._identity.is_of(file)

    def close(self) -> None:
        if self._identity is not None:
            self._identity.close()


def _unmap(inode: Inode, mount: Mount, path: bytes) -> None:
    """Turn owners that an id-mapped mount shows into those on the filesystem.

    Raises:
        DetachedError: they are not to be told.
    """
    what = f"{quote(path)} of a filesystem in memory"
    if _OVERFLOW_ID in (inode.uid, inode.gid):
        raise DetachedError(
            f"{what} has an owner that its id-mapped mount has no place for: give it another"
        )
    inode.uid = unmap_id(inode.uid, mount.uid_map, what)
    inode.gid = unmap_id(inode.gid, mount.gid_map, what)
    for xattr in inode.xattrs:
        if xattr.name.startswith(_ACL):
            xattr.value = unmap_acl(xattr.value, mount.uid_map, mount.gid_map, what)


def _gives_privilege(mode: int) -> str:
    """Say what it is about a file that gives who opens it more than it has; empty: nothing."""
    if stat.S_ISBLK(mode) or stat.S_ISCHR(mode):
        return "a device"
    if stat.S_ISREG(mode) and mode & (stat.S_ISUID | stat.S_ISGID):
        return "a program that changes user or group"
    return ""
