# SPDX-License-Identifier: GPL-2.0-only
"""Calls into the fast path (plugin/fast): once told of a mount, it takes plain files by itself."""

from __future__ import annotations

from criu_detached.errors import DetachedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class FastPath:
    """Typed calls into the fast path; what needs memory raises DetachedError when there is none."""

    def __init__(self, ffi: Any, lib: Any) -> None:
        """Take the C side.

        Args:
            ffi: of the embedded module.
            lib: its functions.
        """
        self._ffi = ffi
        self._lib = lib

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

    def recorded_file_add(self, mnt_id: int, ino: int, dev: int, path: bytes) -> None:
        """Note that a file has a record (plugin/fast/recorded_files.h).

        Args:
            mnt_id: of its mount.
            ino: its inode.
            dev: its st_dev.
            path: beneath the mount's root.
        """
        if self._lib.recorded_file_add(mnt_id, ino, dev, path):
            raise DetachedError("no memory for the records")

    def recorded_file_find(self, mnt_id: int, ino: int) -> tuple[int, bytes] | None:
        """Return st_dev and path of a file that has a record, whoever made that; else None.

        Args:
            mnt_id: of its mount.
            ino: its inode.
        """
        found = self._lib.recorded_file_find(mnt_id, ino)
        return (int(found.dev), self._ffi.string(found.path)) if found else None

    def take_plain_records(self) -> tuple[bytes, int]:
        """Take over the records that the fast path has made: framed, and how many."""
        size, entries = self._ffi.new("size_t *"), self._ffi.new("unsigned int *")
        data = self._lib.plain_files_pending(size, entries)
        records = bytes(self._ffi.buffer(data, size[0])) if size[0] else b""
        self._lib.plain_files_written()
        return records, int(entries[0])

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
