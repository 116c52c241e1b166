# SPDX-License-Identifier: GPL-2.0-only
"""Filesystems that live in memory alone, at dump: they are saved with their contents.

Through a directory a task reaches everything up to its mount's root and down; through a
file it reaches that file alone. That, and no more, is saved: files as they are met, and
trees at the end of the dump, when it is known which mounts have a directory held.
"""

from __future__ import annotations

import fcntl
import os
import stat

from criu_detached import kernel, paths
from criu_detached.contents import ContentWriter
from criu_detached.describe import DetachedMount, mount_attributes_of
from criu_detached.errors import DetachedError, quote, reason
from criu_detached.ghosts import handle_of, inode_of
from criu_detached.holders import files_of
from criu_detached.layout import Layout
from criu_detached.paths import Name
from criu_detached.records import RECREATED, BindSource, File, Filesystem, Ghost, Mount, Node
from criu_detached.superblock import superblock_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from criu_detached.classify import Kind
    from criu_detached.kernel import FileFacts
    from criu_detached.recordfile import RecordWriter

# linux/magic.h
TMPFS_MAGIC = 0x01021994
RAMFS_MAGIC = 0x858458F6
_TYPES = {TMPFS_MAGIC: b"tmpfs", RAMFS_MAGIC: b"ramfs"}

_WANTED = kernel.STATMOUNT_SB_BASIC | kernel.STATMOUNT_MNT_OPTS
_ROOT_DELETED = b"//deleted"  # dentry_path, fs/d_path.c
_SB_RDONLY = 1  # linux/mount.h, of sb_flags
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NOATIME
_RESTRICTED = kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV

# What the kernel shows with the options, and mount(2) does not take or the record says otherwise.
_NOT_OPTIONS = {b"rw", b"ro", b"seclabel"}


class Memory:
    """One superblock in memory."""

    def __init__(
        self,
        number: int,
        fd: int,
        kind: Kind,
        records: RecordWriter,
        contents: ContentWriter,
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
        self._roots: dict[bytes, int] = {}  # root of a mount, and a directory on that mount
        self._paths: dict[int, bytes] = {}  # of what is saved, by inode
        self._ghosts: list[tuple[int, File]] = []
        self._layout: Layout | None = None
        self._restricted = restricted
        self.read_only = bool(kernel.fstatfs(fd).flags & os.ST_RDONLY)
        fs_type = _TYPES[kernel.fstatfs(fd).magic]
        if kind.statmount:
            self.read_only = bool(kernel.statmount_by_fd(fd, _WANTED).sb_flags & _SB_RDONLY)
        self.record = Filesystem(
            id=number,
            superblock=superblock_of(fd, fs_type),
            source=fs_type,
            options=_options(fd, kind, fs_type) + ([b"ro"] if self.read_only else []),
        )
        records.filesystem(self.record)

    def describe(self, fd: int, link: bytes, facts: FileFacts, kind: Kind) -> DetachedMount:
        """Describe a mount of it.

        Args:
            fd: a file on the mount.
            link: its path from the mount's root, as its link shows it.
            facts: of the file.
            kind: what the classifier said.

        Raises:
            DetachedError: the kernel does not tell where in the filesystem its root is.
        """
        root, deleted = self._root(fd, facts, kind)
        name = _name_of(fd, link, facts)
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
            root_deleted=int(deleted or (is_root and name.deleted)),
            filesystem=self.record.id,
        )
        return MemoryMount(record, self)

    def _root(self, fd: int, facts: FileFacts, kind: Kind) -> tuple[bytes, bool]:
        """A mount's root, and whether it is known to be deleted."""
        if kind.statmount:
            shown = kind.statmount.mnt_root
            return shown.removesuffix(_ROOT_DELETED), shown.endswith(_ROOT_DELETED)
        if self._layout is None:
            self._layout = Layout(_with(fd, files_of(facts.dev)))
        root = self._layout.root_of(fd, facts.mnt_id)
        if root is None:
            raise DetachedError(
                "its filesystem is in memory and has several detached mounts; how they lie in"
                " each other, Linux 7.0 or newer tells"
            )
        return b"/" if root == paths.ROOT else b"/" + root, False

    def save(self, fd: int, file: File, facts: FileFacts, root: bytes) -> None:
        """Save a file that a task holds; a directory stands for its whole mount.

        Args:
            fd: the file.
            file: its record.
            facts: of the file.
            root: of its mount, beneath the filesystem's root.
        """
        if stat.S_ISDIR(facts.mode):
            if root not in self._roots:
                self._roots[root] = os.open(b"/proc/self/fd/%d" % fd, kernel.O_PATH)
        elif facts.ino not in self._paths:
            path = paths.join(root, file.path)
            if not stat.S_ISREG(facts.mode) or not _is_readable(fd):
                self._save_node(fd, facts, path)
                return
            # To open it once more would break a lease that the task may have.
            position = os.lseek(fd, 0, os.SEEK_CUR)
            try:
                self._save_node(fd, facts, path, readable=True)
            finally:
                os.lseek(fd, position, os.SEEK_SET)

    def save_later(self, fd: int, file: File) -> None:
        """Save a file whose name is gone, and which has others; which, the trees may tell."""
        self._ghosts.append((os.open(b"/proc/self/fd/%d" % fd, kernel.O_PATH), file))

    def finish(self) -> None:
        """Save the trees.

        Raises:
            DetachedError: something in them cannot be saved.
        """
        if self._layout is not None:
            self._layout.close()
        for root, directory in sorted(self._roots.items()):
            top = _climb(directory)
            try:
                self._save_tree(top, root)
            finally:
                os.close(top)
        for fd, file in self._ghosts:
            facts = kernel.fstat(fd)
            ghost = Ghost(file=file, alias=self._paths.get(facts.ino, b""))
            if not ghost.alias:  # no task can reach its other names
                ghost.inode = inode_of(fd, facts, self._contents)
            self._records.ghost(ghost)
            os.close(fd)

    def _save_tree(self, top: int, root: bytes) -> None:
        """Save a directory and what is in it, the near before the far."""
        queue = [paths.ROOT]
        for here in queue:
            path = paths.join(root, here)
            try:
                queue += [paths.join(here, name) for name in self._save_directory(top, here, path)]
            except OSError as error:
                raise DetachedError(
                    f"a filesystem in memory cannot be saved ({reason(error.errno or 0)}):"
                    f" {quote(path)}"
                ) from error

    def _save_directory(self, top: int, here: bytes, path: bytes) -> list[bytes]:
        """Save a directory, and what is in it but directories, whose names are returned."""
        fd, facts = kernel.open_beneath(top, here, _READ | os.O_DIRECTORY)
        directories = []
        try:
            if facts.ino not in self._paths:
                self._save_node(fd, facts, path, readable=True)
            with os.scandir(fd) as entries:
                for entry in entries:
                    name = os.fsencode(entry.name)
                    if entry.is_dir(follow_symlinks=False):
                        directories.append(name)
                    else:
                        saved = entry.inode() in self._paths
                        readable = entry.is_file(follow_symlinks=False) and not saved
                        self._save_entry(fd, name, paths.join(path, name), readable)
        finally:
            os.close(fd)
        return directories

    def _save_entry(self, directory: int, name: bytes, path: bytes, readable: bool) -> None:
        """Save what is in a directory, and is none; only regular files are opened for reading."""
        how = _READ if readable else kernel.O_PATH | kernel.O_NOFOLLOW
        fd, facts = kernel.open_beneath(directory, name, how)
        try:
            known = self._paths.get(facts.ino)
            if known is None:
                self._save_node(fd, facts, path, readable)
            elif known != path:
                node = Node(filesystem=self.record.id, path=path, mode=facts.mode, same_as=known)
                self._records.node(node)
        finally:
            os.close(fd)

    def _save_node(self, fd: int, facts: FileFacts, path: bytes, readable: bool = False) -> None:
        if self._restricted and (why := _gives_privilege(facts.mode)):
            raise DetachedError(
                f"{quote(path)} of a filesystem in memory is {why}, and the filesystem would be"
                " made anew outside of the tasks' user namespace: remove it"
            )
        node = Node(filesystem=self.record.id, path=path, mode=facts.mode, rdev=facts.rdev)
        node.inode = inode_of(fd, facts, self._contents, readable)
        self._records.node(node)
        self._paths[facts.ino] = path


class MemoryMount(DetachedMount):
    """A detached mount of such a filesystem: there is nothing to compare its files with."""

    def __init__(self, record: Mount, memory: Memory) -> None:
        super().__init__(record, -1, -1, memory.read_only)
        self.memory = memory

    def name_of(self, fd: int, link: bytes, facts: FileFacts) -> Name:
        """Where a file's link says it is."""
        return _name_of(fd, link, facts)


def _name_of(fd: int, link: bytes, facts: FileFacts) -> Name:
    """Read a file's link: one that ends in " (deleted)" may be the name of a file that is not.

    That is so if the file's handle leads to the same name, for it prefers those that are there.
    """
    found = paths.readings(link, facts)
    if len(found) == 1 or stat.S_ISDIR(facts.mode):  # of a deleted directory nlink is zero
        return found[0]
    return found[0] if _link_by_handle(fd, facts) == link else found[1]


def _link_by_handle(fd: int, facts: FileFacts) -> bytes:
    """The link of a file as its handle leads to it; empty: there is no such way."""
    handle = handle_of(fd)
    if handle is None or not stat.S_ISREG(facts.mode):
        return b""
    opened = []
    try:
        opened.append(os.open(b"/proc/self/fd/%d" % fd, os.O_RDONLY | os.O_CLOEXEC))
        opened.append(kernel.open_by_handle(opened[0], (handle.type, handle.bytes), kernel.O_PATH))
        return os.readlink(b"/proc/self/fd/%d" % opened[1])
    except OSError:
        return b""
    finally:
        for used in opened:
            os.close(used)


def _options(fd: int, kind: Kind, fs_type: bytes) -> list[bytes]:
    """Options of the superblock. Before Linux 7.0 its size and number of inodes are known."""
    if kind.statmount:
        shown = kernel.statmount_by_fd(fd, _WANTED).mnt_opts
        return [option for option in shown if option.partition(b"=")[0] not in _NOT_OPTIONS]
    if fs_type != b"tmpfs":
        return []
    fs = os.fstatvfs(fd)
    return [b"size=%d" % (fs.f_blocks * fs.f_frsize), b"nr_inodes=%d" % fs.f_files]


def _gives_privilege(mode: int) -> str:
    if stat.S_ISBLK(mode) or stat.S_ISCHR(mode):
        return "a device"
    if stat.S_ISREG(mode) and mode & (stat.S_ISUID | stat.S_ISGID):
        return "a program that changes user or group"
    return ""


def _is_readable(fd: int) -> bool:
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    return not flags & os.O_PATH and flags & os.O_ACCMODE != os.O_WRONLY


def _with(fd: int, others: Iterator[int]) -> Iterator[int]:
    yield fd
    yield from others


def _climb(directory: int) -> int:
    """An O_PATH fd of the root of a directory's mount; the directory is closed.

    The kernel does not go above a detached mount's root (follow_dotdot, fs/namei.c), unless the
    mount is locked to the one that it was on.
    """
    here = kernel.fstat(directory)
    while True:
        above = os.open(b"..", kernel.O_PATH | os.O_DIRECTORY, dir_fd=directory)
        found = kernel.fstat(above)
        if found.ino == here.ino or found.mnt_id != here.mnt_id:
            os.close(above)
            return directory
        os.close(directory)
        directory, here = above, found
