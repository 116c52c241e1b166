# SPDX-License-Identifier: GPL-2.0-only
"""The times and extended attributes of a socket's file and its directory, around a bind."""

from __future__ import annotations

import os
import stat

from criu_detached import paths
from criu_detached.criu import log
from criu_detached.errors import quote, why

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.images.records import BoundSocket


class SocketAttributes:
    """What a bind changes of a directory, and what the file of a socket had that was there.

    CRIU itself restores mode and owner.
    """

    def __init__(self, record: BoundSocket, start: int) -> None:
        """Look at them, where the directory and the file were recreated.

        Args:
            record: of the socket.
            start: where its name starts.

        Raises:
            OSError: the file cannot be looked at.
        """
        self._name = record.name.rpartition(b"/")[2] if record.name[:1] == b"/" else record.name
        self._directory = self._name.rpartition(b"/")[0] or paths.ROOT
        self._times = _times(os.stat(self._directory, dir_fd=start))
        self._file_times: tuple[int, int] | None = None
        self._xattrs: dict[str, bytes] = {}
        if record.deleted:
            return
        path = b"/proc/self/fd/%d/%s" % (start, self._name)
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            return  # no task could see it
        if stat.S_ISSOCK(found.st_mode):
            self._file_times = _times(found)
            self._xattrs = {
                name: os.getxattr(path, name, follow_symlinks=False)
                for name in os.listxattr(path, follow_symlinks=False)
            }

    def give(self) -> None:
        """Give them to those that are there now, beneath the working directory."""
        try:
            for name, value in self._xattrs.items():
                os.setxattr(self._name, name, value, follow_symlinks=False)
            if self._file_times:
                os.utime(self._name, ns=self._file_times, follow_symlinks=False)
            os.utime(self._directory, ns=self._times, follow_symlinks=False)
        except OSError as error:
            log.warn(
                f"the file of the socket {quote(self._name)} has other times or extended"
                f" attributes than it had: {why(error)}"
            )


def _times(found: os.stat_result) -> tuple[int, int]:
    return found.st_atime_ns, found.st_mtime_ns
