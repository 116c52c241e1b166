# SPDX-License-Identifier: GPL-2.0-only
"""The restore: from a record to an fd.

records -> realise each mount once -> open each file in it -> hand the fd to CRIU.

``Restore`` is made in CRIU's own process before any task exists; its ``open`` and
``ext_file`` run in the tasks, where nothing may be imported, no fd may stay open but
the one that is returned, and the filesystem may be hostile.
"""

from __future__ import annotations

import errno
import os
import stat

from criu_detached import kernel, log, paths
from criu_detached.contents import ContentReader, open_data
from criu_detached.errors import DetachedError, quote, reason
from criu_detached.kernel import FileFacts
from criu_detached.mountinfo import read_mountinfo
from criu_detached.recordfile import Records, damaged, read_records
from criu_detached.records import (
    BIND_SOURCE,
    RECREATED,
    REMOUNT,
    SUPPLIED,
    ExtFile,
    File,
    Ghost,
    Mount,
    Node,
    is_in_namespace,
)
from criu_detached.restore.ghosts import check_ghost
from criu_detached.restore.realise import (
    Means,
    Realised,
    attach,
    check_filesystems,
    check_mount,
    let_go,
    needs_id_map,
    realise,
    type_name,
    user_namespace,
)
from criu_detached.restore.sockets import SocketNames
from criu_detached.restore.supplied import find_supplies, has_userns
from criu_detached.superblock import boot_id
from criu_detached.terminals import is_slave, is_terminal, other_end
from criu_detached.wire import WireError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from criu_detached.host import Host

# F_GETFL never returns these: with them an open would change the filesystem.
_NEVER_OPEN = os.O_CREAT | os.O_EXCL | os.O_TRUNC | os.O_TMPFILE & ~os.O_DIRECTORY

_PROC_KEY = b"criu-detached-proc"
_DATA_KEY = b"criu-detached-data"


def _mount_key(mount: Mount) -> bytes:
    return b"criu-detached-mount-%d" % mount.mnt_id


def _ghost_key(file: File) -> bytes:
    return b"criu-detached-ghost-%d-%d" % (file.mnt_id, file.ino)


def _userns_key(mount: Mount) -> bytes:
    return b"criu-detached-userns-%d" % mount.mnt_id


class Restore:
    """One restore: every mount is realised once, and shared by all tasks."""

    def __init__(self, host: Host) -> None:
        """Read the records and realise what can be realised outside the tasks.

        Raises:
            DetachedError: the records are bad, or a bind source is.
        """
        self._host = host
        self._records = read_records(host.image_dir())
        self._mounts = self._records.mounts
        for mount in self._mounts.values():
            check_mount(mount)
        self._socket_names = SocketNames(host, self._records)
        check_filesystems(self._records)
        self._supplies = find_supplies(self._records, host)
        self._in_userns = has_userns(host)
        self._same_boot = self._records.header.boot_id == boot_id()
        self._trees: dict[int, list[Mount]] = {}  # by the mount at the root, which comes first
        for mount in self._mounts.values():
            self._trees.setdefault(self._root_of(mount.mnt_id), []).append(mount)
        # A tree that has a mount of the restored namespace is put together by a task.
        trees = [tree for tree in self._trees.values() if any(map(is_in_namespace, tree))]
        inside = [mount.mnt_id for tree in trees for mount in tree]
        self._in_tasks = {mnt_id: index for index, mnt_id in enumerate(inside)}
        self._ghosts_of: dict[int, list[Ghost]] = {}
        self._ghosts_in_tasks: dict[tuple[int, int], int] = {}
        self._sort_ghosts()
        self._keeps_inodes: dict[int, bool] = {}
        self._not_realised: dict[int, str] = {}  # and why
        host.shared_alloc(len(self._in_tasks) + len(self._ghosts_in_tasks))
        proc = _open_proc()
        data = self._open_data()
        self._realise_outside(proc, ContentReader(data) if data >= 0 else None)
        self._index_files()
        host.inherit_fd_add(proc, _PROC_KEY)
        if data >= 0:
            host.inherit_fd_add(data, _DATA_KEY)

    def _sort_ghosts(self) -> None:
        """Find the deleted files of each mount; each has a shared number if a task makes it."""
        for key, ghost in self._records.ghosts.items():
            self._ghosts_of.setdefault(key[0], []).append(ghost)
            if key[0] in self._in_tasks:
                number = len(self._in_tasks) + len(self._ghosts_in_tasks)
                self._ghosts_in_tasks[key] = number

    def _open_data(self) -> int:
        """The data file, if there is something in it, and all of it checked; else -1."""
        ghosts = self._records.ghosts.values()
        data, reader = -1, None
        nodes = (node for nodes in self._records.nodes.values() for node in nodes)
        if any(map(_has_content, ghosts)) or any(map(_has_content, nodes)):
            data = open_data(self._host.image_dir())
            reader = ContentReader(data)
        for ghost in ghosts:
            check_ghost(ghost, reader)
        return data

    def _index_files(self) -> None:
        """Hand the file records to the fast path, which says whether they are sound."""
        for mount in self._mounts.values():
            index = self._in_tasks.get(mount.mnt_id, -1)
            key = _mount_key(mount) if index < 0 else None
            keeps = self._keeps_inodes.get(mount.mnt_id, False)
            self._host.known_mount_add(mount.mnt_id, key, index, keeps)
        if not self._host.known_files_load(self._records.data):
            _refuse_files(self._records)

    def _realise_outside(self, proc: int, reader: ContentReader | None) -> None:
        """Realise what comes from the host, while its namespace is at hand."""
        root = os.open("/", kernel.O_PATH)
        means = Means(root, self._same_boot, proc=proc, reader=reader)
        self._anonymous: dict[int, int] = {}  # tree fds of anonymous mounts
        try:
            for mnt_id, supply in self._supplies.items():
                means.supplied[mnt_id] = supply.open(self._mounts[mnt_id])
            for mount in self._mounts.values():
                if is_in_namespace(mount):
                    userns = _user_namespace(mount)
                    if userns >= 0:
                        self._host.inherit_fd_add(userns, _userns_key(mount))
                elif mount.origin in (BIND_SOURCE, SUPPLIED):
                    self._realise_if_needed(mount, means)
            if self._records.filesystems:
                self._realise_filesystems(means)
            for mount in self._mounts.values():
                if mount.parent in self._anonymous and mount.mnt_id not in self._in_tasks:
                    tree = self._anonymous.get(mount.mnt_id)
                    if tree is not None:  # see _realise_if_needed
                        attach(mount, tree, self._anonymous[mount.parent], kernel.attach)
        finally:
            for fd in (root, *means.supplied.values(), *self._anonymous.values()):
                os.close(fd)

    def _realise_filesystems(self, means: Means) -> None:
        """Realise what is on filesystems that nobody else shows.

        A clone is made in the namespace of its source alone, so all of it is in one. What is
        mounted there covers its root, and then the kernel makes no user namespace: see
        current_chrooted (fs/namespace.c).
        """
        from criu_detached.restore.filesystems import (
            make,  # few restores need it, and it takes long
        )

        devices = make.find_all_devices(self._records)
        mounts = [mount for mount in self._mounts.values() if mount.origin in (REMOUNT, RECREATED)]
        try:
            namespaces = [_user_namespace(mount) for mount in mounts]
            with kernel.PrivateNamespace():
                make.make_filesystems(self._records, means, devices)
                for mount, userns in zip(mounts, namespaces, strict=True):
                    self._realise(mount, means, userns)
                make.settle_filesystems(self._records, means)
        except OSError as error:
            raise DetachedError(f"can't make a mount namespace to work in: {error}") from error
        finally:
            make.close_devices(devices)
            for top in means.tops.values():
                os.close(top)

    def _realise_if_needed(self, mount: Mount, means: Means) -> None:
        """As _realise, but of a mount with terminals alone that may be replaced (--shell-job)."""
        try:
            self._realise(mount, means, _user_namespace(mount))
        except DetachedError as error:
            if not self._has_slaves_alone(mount.mnt_id):
                raise
            log.warn(f"mount {mount.mnt_id}, with terminals alone, is not realised: {error}")
            self._not_realised[mount.mnt_id] = str(error)

    def _has_slaves_alone(self, mnt_id: int) -> bool:
        try:
            files = [file for key, file in self._records.files.items() if key[0] == mnt_id]
        except WireError:
            return False
        return bool(files) and all(map(is_slave, files))

    def _realise(self, mount: Mount, means: Means, userns: int) -> None:
        means.userns_fd = userns
        try:
            found = realise(mount, self._ghosts_of.get(mount.mnt_id, []), means)
        finally:
            if means.userns_fd >= 0:
                os.close(means.userns_fd)
        if mount.anonymous:
            self._anonymous[mount.mnt_id] = os.dup(found.tree)
        self._keeps_inodes[mount.mnt_id] = found.keeps_inodes
        self._socket_names.check_directories(mount, found.tree)
        self._host.inherit_fd_add(found.tree, _mount_key(mount))
        for ghost, fd in found.ghosts:
            assert ghost.file is not None  # recordfile
            self._host.inherit_fd_add(fd, _ghost_key(ghost.file))
        log.info(f"mount {mount.mnt_id} is realised")

    def open(self, name: bytes, flags: int) -> int:
        """Open a file in a task, as CRIU would.

        Args:
            name: as CRIU has it: the external key less its first character.
            flags: of open(2).

        Returns:
            The fd.

        Raises:
            DetachedError: there is no such record, or another file is there now.
        """
        name, other = _other_end(name)
        key = _file_key(name)
        ghost = self._records.ghosts.get(key)
        file = ghost.file if ghost else self._records.files.get(key)
        if file is None:
            raise DetachedError(f"no record of {quote(name)}: are the images complete?")
        if other:
            file, ghost = other_end(file, other), None
        if flags & _NEVER_OPEN:
            raise DetachedError(f"{quote(file.path)} has flags {flags:#x}, which no open file has")
        tree = self._tree_fd(file.mnt_id)
        try:
            if self._is_tree_fd(file, flags):
                if not ghost:
                    self._compare(file, kernel.fstat(tree))
                return os.dup(tree)
            open_it = self._open_ghost if ghost else self._open_in
            return open_it(tree, file, flags)
        except BlockingIOError:
            raise  # CRIU expects it where it breaks a lease (restore_lease_prebreaking_state)
        except OSError as error:
            raise DetachedError(
                f"can't open {quote(file.path)} on mount {file.mnt_id}: {reason(error.errno or 0)}"
            ) from error
        finally:
            os.close(tree)

    def ext_file(self, file_id: int) -> int | None:
        """Open a device that CRIU left to plugins; None when it was not this one's.

        Raises:
            DetachedError: another file is there now, or it cannot be opened.
        """
        record = self._records.ext_files.get(file_id)
        if record is None:
            return None
        key = (record.mnt_id, record.ino)
        ghost = self._records.ghosts.get(key)
        file = ghost.file if ghost else self._records.files.get(key)
        if file is None or not (stat.S_ISBLK(file.mode) or stat.S_ISCHR(file.mode)):
            raise DetachedError(f"external file {file_id:#x} is no device: the images are damaged")
        fd = self.open(b"ile[%x:%x]" % (record.mnt_id, record.ino), record.flags)
        _set_position(fd, record)
        return fd

    def lead_socket_name(self, number: int) -> None:
        """Make the name of a recorded socket lead to its mount; raises DetachedError."""
        self._socket_names.lead(number, self._tree_fd)

    def socket_bound(self, number: int) -> None:
        """Give the new file of a socket what the old one had; the task is where it starts."""
        self._socket_names.bound(number)

    def _tree_fd(self, mnt_id: int) -> int:
        """A new fd of a mount's tree."""
        if mnt_id in self._not_realised:
            raise DetachedError(self._not_realised[mnt_id])
        index = self._in_tasks.get(mnt_id)
        if index is None:
            return self._host.inherit_fd_get(_mount_key(self._mounts[mnt_id]))
        if (tree := self._stored_tree(mnt_id, index)) >= 0:
            return tree
        lock = self._in_tasks[self._root_of(mnt_id)]
        self._host.shared_lock(lock)
        try:
            tree = self._stored_tree(mnt_id, index)
            return tree if tree >= 0 else self._realise_tree(mnt_id)
        finally:
            self._host.shared_unlock(lock)

    def _root_of(self, mnt_id: int) -> int:
        """The mount at the root of an anonymous tree; any other mount is one by itself."""
        while parent := self._mounts[mnt_id].parent:
            mnt_id = parent
        return mnt_id

    def _stored_tree(self, mnt_id: int, index: int) -> int:
        """A new fd of a tree that some task has realised; -1 when none has."""
        value = self._host.shared_get(index)
        if value < 0:
            return -1
        # known_files.h: the fd store's id, and in the lowest bit whether inodes are kept
        self._keeps_inodes[mnt_id] = bool(value & 1)
        return self._host.fdstore_get(value >> 1)

    def _realise_tree(self, mnt_id: int) -> int:
        """Realise a mount, and those of its tree: this task is the first to need one."""
        trees: dict[int, int] = {}
        try:
            for mount in self._trees[self._root_of(mnt_id)]:
                inside = is_in_namespace(mount)
                found = self._realise_inside(mount) if inside else self._take_realised(mount)
                if mount.parent:
                    self._attach_inside(mount, found, trees[mount.parent])
                trees[mount.mnt_id] = self._store(found, mount.mnt_id)
            return os.dup(trees[mnt_id])
        finally:
            for tree in trees.values():
                os.close(tree)

    def _take_realised(self, mount: Mount) -> Realised:
        """A mount of a tree that was realised outside of the tasks."""
        found = Realised(
            self._host.inherit_fd_get(_mount_key(mount)), self._keeps_inodes[mount.mnt_id]
        )
        for ghost in self._ghosts_of.get(mount.mnt_id, []):
            assert ghost.file is not None  # recordfile
            found.ghosts.append((ghost, self._host.inherit_fd_get(_ghost_key(ghost.file))))
        return found

    def _realise_inside(self, mount: Mount) -> Realised:
        """Realise a mount from the restored namespace."""
        source = mount.bind_source
        assert source is not None
        ghosts = self._ghosts_of.get(mount.mnt_id, [])
        opened = []

        def inherited(key: bytes, wanted: bool) -> int:
            if not wanted:
                return -1
            opened.append(self._host.inherit_fd_get(key))
            return opened[-1]

        try:
            data = inherited(_DATA_KEY, any(_has_content(ghost) for ghost in ghosts))
            means = Means(
                self._host.mntns_root(source.mnt_id),
                self._same_boot,
                inherited(_userns_key(mount), needs_id_map(mount)),
                self._clone_inside,
                inherited(_PROC_KEY, bool(ghosts or mount.root_deleted or source.id_mapped)),
                ContentReader(data) if data >= 0 else None,
            )
            means.in_userns = self._in_userns
            return realise(mount, ghosts, means)
        finally:
            for fd in opened:
                os.close(fd)

    def _attach_inside(self, mount: Mount, found: Realised, parent: int) -> None:
        """Attach a mount of a tree on its parent, where the root of the tree was cloned."""
        source = self._mounts[self._root_of(mount.mnt_id)].bind_source
        assert source is not None

        def move(tree: int, target: int) -> None:
            try:
                kernel.attach(tree, target)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                place = self._host.mntns_root(source.mnt_id)
                self._visit(place, lambda ns, own: kernel.attach_visiting(ns, own, tree, target))

        try:
            attach(mount, found.tree, parent, move)
        except DetachedError:
            let_go(found)
            raise

    def _store(self, found: Realised, mnt_id: int) -> int:
        """Keep a mount that this task has realised for the others; returns its tree fd."""
        self._keeps_inodes[mnt_id] = found.keeps_inodes
        try:
            for ghost, fd in found.ghosts:
                assert ghost.file is not None  # recordfile
                number = self._ghosts_in_tasks[mnt_id, ghost.file.ino]
                self._host.shared_set(number, self._host.fdstore_add(fd))
            # Last: now the others look no further.
            kept = self._host.fdstore_add(found.tree)
            self._host.shared_set(self._in_tasks[mnt_id], kept << 1 | int(found.keeps_inodes))
        except DetachedError:
            os.close(found.tree)
            raise
        finally:
            for _, fd in found.ghosts:
                os.close(fd)
        return found.tree

    def _clone_inside(self, fd: int) -> int:
        """Clone a mount of a restored namespace, which may be another than this task's."""
        try:
            return kernel.clone_mount(fd)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        return self._visit(fd, lambda ns, own: kernel.clone_mount_visiting(ns, own, fd))

    def _visit(self, fd: int, work: Callable[[int, int], int]) -> int:
        """Work in the namespace of an attached mount.

        Args:
            fd: a file on the mount.
            work: is given fds of that namespace and of this task's own.
        """
        proc = self._host.inherit_fd_get(_PROC_KEY)
        own = other = -1
        try:
            own = os.open(b"self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
            other = _open_namespace_of(proc, kernel.fstat(fd).mnt_id)
            return work(other, own)
        finally:
            for used in (proc, own, other):
                if used >= 0:
                    os.close(used)

    def _is_tree_fd(self, file: File, flags: int) -> bool:
        """Tell whether what is opened is the fd of an anonymous tree, or may be.

        Of an O_PATH fd of the root nobody can tell. All of them become one: either way the
        mount can be attached by it, and is dissolved with the last of them.
        """
        mount = self._mounts[file.mnt_id]
        wanted = bool(mount.anonymous) and not mount.parent and file.path == paths.ROOT
        return wanted and flags & (os.O_PATH | os.O_NOFOLLOW) == os.O_PATH

    def _open_in(self, tree: int, file: File, flags: int) -> int:
        """Open a file beneath its mount's root, in two steps.

        The first, O_PATH, shows what is there without any effect on it: opening a
        device or a FIFO that someone put in a file's place may have one.
        """
        here = paths.facts_at(tree, file.path)
        self._compare(file, here)
        flags |= os.O_CLOEXEC
        if file.path == paths.ROOT and not stat.S_ISDIR(file.mode):
            fd = self._open_root(tree, file, flags)
            found = kernel.fstat(fd)
        else:
            fd, found = kernel.open_beneath(tree, file.path, flags)
        if (found.dev, found.ino, found.rdev) != (here.dev, here.ino, here.rdev):
            os.close(fd)
            raise DetachedError(f"{quote(file.path)} was replaced while it was restored")
        return fd

    def _open_root(self, tree: int, file: File, flags: int) -> int:
        """Open the one file of a mount of a file: there is no name beneath the root."""
        if flags & os.O_PATH and not flags & os.O_NOFOLLOW:
            return kernel.open_tree(tree, b"", kernel.AT_EMPTY_PATH | kernel.OPEN_TREE_CLOEXEC)
        handle = (file.handle.type, file.handle.bytes) if file.handle else None
        if handle and not self._keeps_inodes.get(file.mnt_id):
            handle = kernel.name_to_handle(tree)
        return self._open_linked(tree, tree, handle, flags)

    def _open_ghost(self, tree: int, file: File, flags: int) -> int:
        """Open a deleted file, of which an O_PATH fd is kept."""
        number = self._ghosts_in_tasks.get((file.mnt_id, file.ino))
        if number is None:
            kept = self._host.inherit_fd_get(_ghost_key(file))
        else:
            kept = self._host.fdstore_get(self._host.shared_get(number))
        if flags & os.O_PATH and flags & os.O_NOFOLLOW:
            return kept  # it is such an fd
        try:
            handle = kernel.name_to_handle(kept) if flags & os.O_NOFOLLOW else None
            return self._open_linked(tree, kept, handle, flags | os.O_CLOEXEC)
        finally:
            os.close(kept)

    def _open_linked(self, tree: int, fd: int, handle: tuple[int, bytes] | None, flags: int) -> int:
        """Open a file again that no name leads to, by its link in procfs.

        That link is one itself, so what had O_NOFOLLOW is opened by its handle.
        open_by_handle_at(2) wants an fd that is no O_PATH one to tell the mount.
        """
        proc = self._host.inherit_fd_get(_PROC_KEY)
        try:
            if not flags & os.O_NOFOLLOW:
                return os.open(b"self/fd/%d" % fd, flags, dir_fd=proc)
            if handle is None:
                raise DetachedError("a file that was opened with O_NOFOLLOW has no handle")
            mount = os.open(b"self/fd/%d" % tree, os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
            try:
                return kernel.open_by_handle(mount, handle, flags)
            finally:
                os.close(mount)
        finally:
            os.close(proc)

    def _compare(self, file: File, found: FileFacts) -> None:
        """Refuse another file, and say how this one has changed: whether it may, CRIU decides."""
        if stat.S_IFMT(found.mode) != stat.S_IFMT(file.mode):
            raise DetachedError(
                f"{quote(file.path)} on mount {file.mnt_id} is {type_name(found.mode)},"
                f" it was {type_name(file.mode)}"
            )
        if found.rdev != file.rdev:
            raise DetachedError(
                f"{quote(file.path)} on mount {file.mnt_id} is device"
                f" {os.major(found.rdev)}:{os.minor(found.rdev)}, it was"
                f" {os.major(file.rdev)}:{os.minor(file.rdev)}"
            )
        if self._keeps_inodes.get(file.mnt_id) and found.ino != file.ino:
            raise DetachedError(
                f"{quote(file.path)} on mount {file.mnt_id} is another file (inode {found.ino}),"
                f" it was inode {file.ino}"
            )
        # CRIU names the file by its key when it refuses one of these (open_path, files-reg.c).
        if found.mode != file.mode and not is_terminal(file):  # CRIU sets a terminal's
            log.warn(
                f"{quote(file.path)} on mount {file.mnt_id} has mode {found.mode:o},"
                f" it had {file.mode:o}"
            )
        if found.size != file.size:
            log.warn(
                f"{quote(file.path)} on mount {file.mnt_id} has {found.size} bytes,"
                f" it had {file.size}"
            )


def _has_content(record: Ghost | Node) -> bool:
    return record.inode is not None and record.inode.data_size > 0


def _other_end(name: bytes) -> tuple[bytes, bytes]:
    """The key of a terminal, and what CRIU has put after it to name the other end; else nothing."""
    key, bracket, other = name.partition(b"]")
    return key + bracket, other


def _file_key(name: bytes) -> tuple[int, int]:
    """Mount id and inode of an external key less its first character."""
    try:
        mnt_id, ino = name.removeprefix(b"ile[").removesuffix(b"]").split(b":")
        return int(mnt_id, 16), int(ino, 16)
    except ValueError:
        return -1, -1


def _refuse_files(records: Records) -> None:
    """Say what is wrong with the file records."""
    try:
        for file in records.files.values():
            if file.path != paths.ROOT and paths.is_invalid(file.path):
                raise DetachedError(f"a file record has the invalid path {quote(file.path)}")
    except WireError as error:
        raise damaged(error) from error
    raise damaged(WireError("its file records are invalid"))


def _user_namespace(mount: Mount) -> int:
    """A user namespace with the mount's id-maps, or -1 when it needs none."""
    try:
        return user_namespace(mount)
    except OSError as error:
        raise DetachedError(
            f"can't make the id-map of mount {mount.mnt_id}: {reason(error.errno or 0)}"
        ) from error


def _open_namespace_of(proc: int, mnt_id: int) -> int:
    """An fd of the mount namespace that a mount is in: that of a process which sees it.

    A walk over the namespaces (NS_MNT_GET_NEXT) is not allowed within a PID namespace,
    but the host's procfs shows every process there too.
    """
    listing = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=proc)
    try:
        pids = [name for name in os.listdir(listing) if name.isdigit()]
    finally:
        os.close(listing)
    seen = set()
    for pid in pids:
        try:
            namespace = os.stat(f"{pid}/ns/mnt", dir_fd=proc).st_ino
            if namespace in seen:
                continue
            seen.add(namespace)
            if any(mount.mnt_id == mnt_id for mount in read_mountinfo(pid, proc)):
                return os.open(f"{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
        except OSError:
            continue  # it ended
    raise OSError(errno.ENOENT, "the mount is in no mount namespace")


def _open_proc() -> int:
    """The host's procfs: it shows every task its own fds, whatever /proc the task has."""
    fd = os.open("/proc", kernel.O_PATH | os.O_DIRECTORY)
    if kernel.fstatfs(fd).magic != kernel.PROC_SUPER_MAGIC:
        os.close(fd)
        raise DetachedError("/proc is no procfs: mount it")
    return fd


def _set_position(fd: int, record: ExtFile) -> None:
    if not record.pos:
        return
    try:
        os.lseek(fd, record.pos, os.SEEK_SET)
    except OSError as error:
        os.close(fd)
        raise DetachedError(
            f"can't restore position {record.pos} of external file {record.id:#x}:"
            f" {reason(error.errno or 0)}"
        ) from error
