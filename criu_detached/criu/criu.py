# SPDX-License-Identifier: GPL-2.0-only
"""CRIU's own functions, as plugin/embed/host.h has them; those for its fds are in fd_store.py."""

from __future__ import annotations

from criu_detached.errors import DetachedError
from criu_detached.kernel import FileStat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any


class Criu:
    """Typed calls into CRIU. Tests give a stand-in with the same methods."""

    def __init__(self, ffi: Any, functions: Any) -> None:
        """Take what the shim found in CRIU.

        Args:
            ffi: of the embedded module.
            functions: struct criu_host.
        """
        self._ffi = ffi
        self._criu = functions
        self.mount_known = self._criu.mount_known  # called for every file

    def log(self, level: int, text: str) -> None:
        """Write a line to CRIU's log."""
        self._criu.log(level, text.encode("ascii", "backslashreplace"))

    def image_dir(self) -> int:
        """Return the fd of the image directory; CRIU's, not to be closed."""
        return int(self._criu.image_dir())

    def dumps_mount_namespace(self) -> bool:
        """Tell whether mount namespaces are dumped."""
        return bool(self._criu.dumps_mount_namespace())

    def dumps_user_namespace(self) -> bool:
        """Tell whether the dumped tasks live in a user namespace of their own."""
        return bool(self._criu.dumps_user_namespace())

    def userns_ids(self, uid: int, gid: int) -> tuple[int, int]:
        """Return owner and group as the dumped user namespace has them, if there is one.

        Args:
            uid: in criu's user namespace.
            gid: likewise.
        """
        return int(self._criu.userns_uid(uid)), int(self._criu.userns_gid(gid))

    def plugin_options(self) -> list[bytes]:
        """Return the values of criu's --plugin-option, "--NAME=VALUE"; CRIU 4.3 and newer."""
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
        """Return an fd of the root of the restored namespace that had a mount.

        Args:
            mnt_id: the mount, as it was at the dump.

        Returns:
            CRIU's fd, not to be closed.

        Raises:
            DetachedError: there is none.
        """
        fd = int(self._criu.mntns_root(mnt_id))
        if fd < 0:
            raise DetachedError("the root of a mount namespace failed; CRIU's log says why")
        return fd

    def socket_name_add(self, number: int, name: bytes, deleted: bool) -> None:
        """Say what the name of a recorded socket is (plugin/shim/socket_names.h).

        Args:
            number: id of the record.
            name: that it is bound to.
            deleted: its file had no name any more.
        """
        if self._criu.socket_name_add(number, name, deleted):
            raise DetachedError("no memory for the names of unix sockets")

    def deleted_files_left(self) -> Iterator[FileStat]:
        """Yield deleted files on mounts that CRIU knows; CRIU recreates those without links."""
        count = self._ffi.new("size_t *")
        files = self._criu.deleted_files_left(count)
        for index in range(count[0]):
            yield FileStat(files[index])

    def watch_name_add(self, dev: int, ino: int, name: bytes) -> None:
        """Let CRIU find a watched inode under a name (plugin/shim/watch_names.h).

        Args:
            dev: device of the superblock.
            ino: the inode.
            name: an external key less its first character.
        """
        if self._criu.watch_name_add(dev, ino, name):
            raise DetachedError("no memory for the names of watched files")
