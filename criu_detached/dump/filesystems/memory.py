# SPDX-License-Identifier: GPL-2.0-only
"""Filesystems that live in memory alone, at dump: they are saved with their contents.

Through a directory a task reaches everything up to its mount's root and down; through a
file it reaches that file alone. That, and no more, is saved: files as they are met, and
trees at the end of the dump, when it is known which mounts have a directory held.
"""

from __future__ import annotations

import os
import stat

from criu_detached import kernel, paths
from criu_detached.dump.describe.mount import DetachedMount, mount_attributes_of
from criu_detached.dump.filesystems.memfacts import Roots, name_of, options_of
from criu_detached.dump.inodes import inode_of
from criu_detached.dump.observe.directories import climb
from criu_detached.dump.open_file import OpenFile
from criu_detached.errors import DetachedError, quote, why
from criu_detached.filesystems.idmap import unmap_acl, unmap_id
from criu_detached.filesystems.superblock import superblock_of, type_of
from criu_detached.images.datafile import DataFileWriter
from criu_detached.images.records import (
    RECREATED,
    BindSource,
    File,
    Filesystem,
    Ghost,
    Inode,
    Mount,
    Node,
)
from criu_detached.paths import Name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.dump.kinds.recreated import MadeAnew
    from criu_detached.dump.observe.classify import Kind
    from criu_detached.images.record_writer import RecordWriter
    from criu_detached.kernel import FileStat

_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NOATIME
_RESTRICTED = kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV

# What stands for an owner that an id-map has no place for (/proc/sys/kernel/overflowuid).
_OVERFLOW_ID = 65534
_ACL = b"system.posix_acl_"


class Memory:
    """One superblock in memory."""

    def __init__(
        self,
        number: int,
        fd: int,
        kind: Kind,
        records: RecordWriter,
        contents: DataFileWriter,
        restricted: bool,
    ) -> None:
        """Begin with its record.

        Args:
            number: the record's.
            fd: a file on it.
            kind: what the classifier said of that file's mount.
            records: the record file.
            contents: the data file.
            restricted: the tasks have a user namespace of their own. The filesystem will
                belong to the host's, so nothing in it may give a task what it has not.
        """
        self._records = records
        self._contents = contents
        self._trees: dict[bytes, _Tree] = {}  # what is to be saved whole, by a mount's root
        self._paths: dict[int, bytes] = {}  # of what is saved, by inode
        self._directories: set[bytes] = set()  # that are saved
        self._of_sockets: set[bytes] = set()  # directories that sockets are bound in
        self._ghosts: list[tuple[int, File]] = []
        self._roots = Roots()
        self._restricted = restricted
        self.read_only = bool(kernel.fstatfs(fd).flags & os.ST_RDONLY)
        fs_type = type_of(fd).names[0]
        known = kind.statmount or self._roots.lay_out(fd)
        if known:
            self.read_only = known.read_only
        self.record = Filesystem(
            id=number,
            superblock=superblock_of(fd, fs_type),
            source=fs_type,
            options=options_of(fd, known, fs_type) + ([b"ro"] if self.read_only else []),
        )
        records.filesystem(self.record)

    def describe(self, fd: int, link: bytes, facts: FileStat, kind: Kind) -> DetachedMount:
        """Describe a mount of it.

        Args:
            fd: a file on the mount.
            link: its path from the mount's root, as its link shows it.
            facts: of the file.
            kind: what the classifier said.

        Raises:
            DetachedError: the kernel does not tell where in the filesystem its root is.
        """
        root, root_deleted = self._roots.root_of(fd, facts, kind)
        name = name_of(fd, link, facts)
        is_root = name.path == paths.ROOT
        record = Mount(
            mnt_id=facts.mnt_id,
            origin=RECREATED,
            root=root,
            root_type=stat.S_IFMT(facts.mode) if is_root else stat.S_IFDIR,
            attr=mount_attributes_of(fd, kind) | (_RESTRICTED if self._restricted else 0),
            superblock=self.record.superblock,
            bind_source=BindSource(mountpoint=b"/", path=paths.from_link(root)),
            uid_map=kind.statmount.uid_map if kind.statmount else [],
            gid_map=kind.statmount.gid_map if kind.statmount else [],
            root_deleted=int(root_deleted),
            filesystem=self.record.id,
        )
        return MemoryMount(record, self)

    def save(self, fd: int, file: File, facts: FileStat, mount: Mount) -> None:
        """Save a file that a task holds or watches; of a directory itself alone.

        Args:
            fd: the file.
            file: its record.
            facts: of the file.
            mount: its mount.
        """
        if facts.ino not in self._paths:
            path = paths.join(_root_of(mount), file.path)
            if not stat.S_ISREG(facts.mode) or not kernel.is_readable(fd):
                self._save_node(fd, facts, path, mount)
                return
            # To open it once more would break a lease that the task may have.
            position = os.lseek(fd, 0, os.SEEK_CUR)
            try:
                self._save_node(fd, facts, path, mount, readable=True)
            finally:
                os.lseek(fd, position, os.SEEK_SET)

    def save_whole(self, directory: int, mount: Mount) -> None:
        """Save all of a mount at the end.

        Args:
            directory: fd of one of it, or of a clone; it stays the caller's.
            mount: its record.
        """
        if _root_of(mount) not in self._trees:
            kept = os.open(b"/proc/self/fd/%d" % directory, kernel.O_PATH)
            self._trees[_root_of(mount)] = _Tree(kept, mount)

    def save_later(self, fd: int, file: File) -> None:
        """Save a file whose name is gone, and which has others; which, the trees may tell.

        Args:
            fd: the file; it stays the caller's.
            file: its record.
        """
        self._ghosts.append((os.open(b"/proc/self/fd/%d" % fd, kernel.O_PATH), file))

    def needs_directory(self, path: bytes) -> None:
        """Note a directory that a socket is bound in; whether it is there, the trees may tell.

        Args:
            path: in the filesystem.
        """
        self._of_sockets.add(path)

    def finish(self, made_anew: MadeAnew) -> None:
        """Save the trees.

        Args:
            made_anew: takes note of deleted files whose other names are not saved.

        Raises:
            DetachedError: something in them cannot be saved.
        """
        self._roots.close()
        for root, tree in sorted(self._trees.items()):
            tree.top = climb(tree.top)
            try:
                self._save_tree(tree, root)
            finally:
                os.close(tree.top)
        for path in self._of_sockets - self._directories:
            if any(_is_below(path, root) for root in self._trees):
                raise DetachedError(
                    f"a socket is bound in the directory {quote(path)} of a filesystem in memory,"
                    " which is deleted, so no socket can be bound there again: close it"
                )
        for fd, file in self._ghosts:
            facts = kernel.fstat(fd)
            ghost = Ghost(file=file, alias=self._paths.get(facts.ino, b""))
            if not ghost.alias:  # no task can reach its other names
                made_anew.add(file)
                ghost.inode = inode_of(OpenFile(fd, facts), self._contents)
            self._records.ghost(ghost)
            os.close(fd)

    def _save_tree(self, tree: _Tree, root: bytes) -> None:
        """Save a directory and what is in it, the near before the far."""
        queue = [paths.ROOT]
        for here in queue:
            path = paths.join(root, here)
            try:
                queue += [paths.join(here, name) for name in self._save_directory(tree, here, path)]
            except OSError as error:
                raise DetachedError(
                    f"a filesystem in memory cannot be saved ({why(error)}): {quote(path)}"
                ) from error

    def _save_directory(self, tree: _Tree, here: bytes, path: bytes) -> list[bytes]:
        """Save a directory, and what is in it but directories, whose names are returned."""
        fd, facts = kernel.open_beneath(tree.top, here, _READ | os.O_DIRECTORY)
        self._directories.add(path)
        directories = []
        try:
            if facts.ino not in self._paths:
                self._save_node(fd, facts, path, tree.mount, readable=True)
            with os.scandir(fd) as entries:
                for entry in entries:
                    name = os.fsencode(entry.name)
                    if entry.is_dir(follow_symlinks=False):
                        directories.append(name)
                    else:
                        saved = entry.inode() in self._paths
                        readable = entry.is_file(follow_symlinks=False) and not saved
                        self._save_entry(fd, name, paths.join(path, name), tree.mount, readable)
        finally:
            os.close(fd)
        return directories

    def _save_entry(
        self, directory: int, name: bytes, path: bytes, mount: Mount, readable: bool
    ) -> None:
        """Save what is in a directory, and is none; only regular files are opened for reading."""
        how = _READ if readable else kernel.O_PATH | kernel.O_NOFOLLOW
        fd, facts = kernel.open_beneath(directory, name, how)
        try:
            known = self._paths.get(facts.ino)
            if known is None:
                self._save_node(fd, facts, path, mount, readable)
            elif known != path:
                node = Node(filesystem=self.record.id, path=path, mode=facts.mode, same_as=known)
                self._records.node(node)
        finally:
            os.close(fd)

    def _save_node(
        self, fd: int, facts: FileStat, path: bytes, mount: Mount, readable: bool = False
    ) -> None:
        if self._restricted and (why := _gives_privilege(facts.mode)):
            raise DetachedError(
                f"{quote(path)} of a filesystem in memory is {why}, and the filesystem would be"
                " made anew outside of the tasks' user namespace: remove it"
            )
        node = Node(filesystem=self.record.id, path=path, mode=facts.mode, rdev=facts.rdev)
        node.inode = inode_of(OpenFile(fd, facts), self._contents, readable)
        if mount.uid_map or mount.gid_map:
            _unmap(node.inode, mount, path)
        self._records.node(node)
        self._paths[facts.ino] = path


class _Tree:
    """What is to be saved whole."""

    __slots__ = ("mount", "top")

    def __init__(self, top: int, mount: Mount) -> None:
        self.top = top  # an O_PATH fd of a directory of it, then of its root
        self.mount = mount


class MemoryMount(DetachedMount):
    """A detached mount of such a filesystem: there is nothing to compare its files with."""

    def __init__(self, record: Mount, memory: Memory) -> None:
        super().__init__(record, -1, -1, memory.read_only)
        self.memory = self._memory = memory

    def is_held_whole(self, root: int) -> None:
        """Take note that a task reaches all of it."""
        if stat.S_ISDIR(kernel.fstat(root).mode):
            self._memory.save_whole(root, self.record)

    def name_of(self, fd: int, link: bytes, facts: FileStat) -> Name:
        """Where a file's link says it is."""
        return name_of(fd, link, facts)


def _root_of(mount: Mount) -> bytes:
    assert mount.bind_source is not None
    return mount.bind_source.path


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


def _is_below(path: bytes, root: bytes) -> bool:
    return path == root or root == paths.ROOT or path.startswith(root + b"/")


def _gives_privilege(mode: int) -> str:
    if stat.S_ISBLK(mode) or stat.S_ISCHR(mode):
        return "a device"
    if stat.S_ISREG(mode) and mode & (stat.S_ISUID | stat.S_ISGID):
        return "a program that changes user or group"
    return ""
