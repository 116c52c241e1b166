# SPDX-License-Identifier: GPL-2.0-only
"""CRIU as the package sees it: the functions that plugin/embed/host.h offers."""

from __future__ import annotations

from criu_detached.errors import DetachedError
from criu_detached.kernel import FileFacts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any


class Host:
    """Typed calls into CRIU. Tests give a stand-in with the same methods.

    What returns an fd raises DetachedError when CRIU gives none, and so does what needs memory.
    """

    def __init__(self, ffi: Any, lib: Any) -> None:
        self._ffi = ffi
        self._lib = lib
        self._criu = lib.the_host()
        self.mount_known = self._criu.mount_known  # called for every file

    def log(self, level: int, text: str) -> None:
        """Write a line to CRIU's log."""
        self._criu.log(level, text.encode("ascii", "backslashreplace"))

    def image_dir(self) -> int:
        """Fd of the image directory; CRIU's, not to be closed."""
        return int(self._criu.image_dir())

    def dumps_mount_namespace(self) -> bool:
        """Tell whether mount namespaces are dumped."""
        return bool(self._criu.dumps_mount_namespace())

    def dumps_user_namespace(self) -> bool:
        """Tell whether the dumped tasks live in a user namespace of their own."""
        return bool(self._criu.dumps_user_namespace())

    def userns_ids(self, uid: int, gid: int) -> tuple[int, int]:
        """Owner and group as the dumped user namespace has them, if there is one.

        Args:
            uid: in criu's user namespace.
            gid: likewise.
        """
        return int(self._criu.userns_uid(uid)), int(self._criu.userns_gid(gid))

    def plugin_options(self) -> list[bytes]:
        """The values of criu's --plugin-option, "--NAME=VALUE"; CRIU 4.3 and newer."""
        options: list[bytes] = []
        while text := self._criu.plugin_option(len(options)):
            options.append(self._ffi.string(text))
        return options

    def flushes(self) -> bool:
        """Tell whether dump_flush is called before the dump ends."""
        return bool(self._criu.flushes)

    def need_plugin(self) -> int:
        """Note in the inventory that the images need this plugin; non-zero on failure."""
        return int(self._criu.need_plugin())

    def mntns_root(self, mnt_id: int) -> int:
        """Fd of the root of the restored namespace that had a mount; CRIU's, not to be closed.

        Args:
            mnt_id: the mount, as it was at the dump.
        """
        return self._fd(self._criu.mntns_root(mnt_id), "the root of a mount namespace")

    def fdstore_add(self, fd: int) -> int:
        """Keep an fd for all tasks, in CRIU's fd store; returns its id there.

        Args:
            fd: it stays the caller's.
        """
        return self._fd(self._criu.fdstore_add(fd), "CRIU's fd store (add)")

    def fdstore_get(self, number: int) -> int:
        """A new fd of one that was kept; the caller's.

        Args:
            number: its id.
        """
        return self._fd(self._criu.fdstore_get(number), "CRIU's fd store (get)")

    def inherit_fd_add(self, fd: int, key: bytes) -> None:
        """Give an fd to CRIU, before the tasks exist, for inherit_fd_get in them.

        Args:
            fd: CRIU's from now on.
            key: what it is found by.
        """
        self._fd(self._criu.inherit_fd_add(fd, key), "CRIU's inherited fds (add)")

    def inherit_fd_get(self, key: bytes) -> int:
        """A new fd of one that was given; the caller's.

        Args:
            key: what it was given with.
        """
        return self._fd(self._criu.inherit_fd_get(key), "CRIU's inherited fds (get)")

    def known_mount_add(
        self, mnt_id: int, key: bytes | None, shared: int, keeps_inodes: bool
    ) -> None:
        """Tell the fast path of a mount (plugin/fast/known_files.h).

        Args:
            mnt_id: as it was at the dump.
            key: of the inherited fd of its tree; None: a task realises it.
            shared: its number in the shared memory, if a task does.
            keeps_inodes: inode numbers are those of the dump.
        """
        text = self._ffi.NULL if key is None else key
        if self._lib.known_mount_add(mnt_id, text, shared, keeps_inodes):
            raise DetachedError("no memory for the mounts of the restored tasks")

    def known_files_load(self, data: bytes) -> bool:
        """Give the fast path the record file; False when its files are not sound.

        Args:
            data: all of the file. It is kept.
        """
        self._data = self._ffi.from_buffer("uint8_t[]", data)  # it must stay in place
        return bool(self._lib.known_files_load(self._data, len(data)) >= 0)

    def plain_mount_add(
        self, mnt_id: int, root: int, source_mnt_id: int, compare_owner: bool
    ) -> None:
        """Let the fast path take a mount's plain files (plugin/fast/plain_files.h).

        Args:
            mnt_id: the detached mount.
            root: fd of its root in the bind source; it stays the caller's.
            source_mnt_id: the bind source.
            compare_owner: refuse a file that has another owner there.
        """
        if self._lib.plain_mount_add(mnt_id, root, source_mnt_id, compare_owner):
            raise DetachedError("no memory for the records")

    def plain_file_note(self, mnt_id: int, ino: int, dev: int, path: bytes) -> None:
        """Tell the fast path of a file that has a record.

        Args:
            mnt_id: of its mount.
            ino: its inode.
            dev: its st_dev.
            path: beneath the mount's root.
        """
        if self._lib.plain_file_note(mnt_id, ino, dev, path):
            raise DetachedError("no memory for the records")

    def plain_file_find(self, mnt_id: int, ino: int) -> tuple[int, bytes] | None:
        """Device and path of a file that the fast path has recorded, or was told of.

        Args:
            mnt_id: of its mount.
            ino: its inode.
        """
        found = self._lib.plain_file_find(mnt_id, ino)
        return (int(found.dev), self._ffi.string(found.path)) if found else None

    def take_plain_records(self) -> tuple[bytes, int]:
        """The records that the fast path has made, framed, and how many; it forgets them."""
        size, entries = self._ffi.new("size_t *"), self._ffi.new("unsigned int *")
        data = self._lib.plain_files_pending(size, entries)
        records = bytes(self._ffi.buffer(data, size[0])) if size[0] else b""
        self._lib.plain_files_written()
        return records, int(entries[0])

    def socket_name_add(self, number: int, name: bytes, deleted: bool) -> None:
        """Say what the name of a recorded socket is (plugin/shim/socket_names.h).

        Args:
            number: id of the record.
            name: that it is bound to.
            deleted: its file had no name any more.
        """
        if self._criu.socket_name_add(number, name, deleted):
            raise DetachedError("no memory for the names of unix sockets")

    def deleted_files_left(self) -> Iterator[FileFacts]:
        """Yield deleted files on mounts that CRIU knows; those without links it makes anew."""
        count = self._ffi.new("size_t *")
        files = self._criu.deleted_files_left(count)
        for index in range(count[0]):
            yield FileFacts(files[index])

    def watch_name_add(self, dev: int, ino: int, name: bytes) -> None:
        """Let CRIU find a watched inode under a name (plugin/shim/watch_names.h).

        Args:
            dev: device of the superblock.
            ino: the inode.
            name: an external key less its first character.
        """
        if self._criu.watch_name_add(dev, ino, name):
            raise DetachedError("no memory for the names of watched files")

    def shared_alloc(self, count: int) -> None:
        """Make memory that all tasks share: entries of a lock and a number each.

        Args:
            count: how many.
        """
        if self._lib.shared_alloc(count):
            raise DetachedError("no memory to share between the restored tasks")

    def shared_lock(self, index: int) -> None:
        """Take the lock of an entry."""
        self._lib.shared_lock(index)

    def shared_unlock(self, index: int) -> None:
        """Let go of the lock of an entry."""
        self._lib.shared_unlock(index)

    def shared_get(self, index: int) -> int:
        """Number of an entry; -1 at first.

        Args:
            index: which.
        """
        return int(self._lib.shared_get(index))

    def shared_set(self, index: int, value: int) -> None:
        """Set the number of an entry.

        Args:
            index: which.
            value: not negative.
        """
        self._lib.shared_set(index, value)

    @staticmethod
    def _fd(result: int, what: str) -> int:
        if result < 0:
            raise DetachedError(f"{what} failed; CRIU's log says why")
        return result
