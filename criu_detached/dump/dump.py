# SPDX-License-Identifier: GPL-2.0-only
"""The dump: what CRIU asks of it, from a link that it reads to a record.

link read -> known to CRIU? (the shim) -> classify the mount by fd -> describe mount
and file -> record.
"""

from __future__ import annotations

import os
import stat

from criu_detached import kernel
from criu_detached.criu import log
from criu_detached.dump.context import DumpContext
from criu_detached.dump.files import Files
from criu_detached.dump.mounts import Mounts
from criu_detached.dump.open_file import OpenFile
from criu_detached.errors import DetachedError, quote
from criu_detached.images.records import ExtFile
from criu_detached.once import once
from criu_detached.terminals import is_slave

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.criu.host import Host
    from criu_detached.dump.kinds.sockets import SocketAnswer, Sockets
    from criu_detached.dump.kinds.watched import WatchedFiles
    from criu_detached.dump.observe.watches import Watch
    from criu_detached.kernel import FileStat


class Dump:
    """One dump. Created when the first file on a mount that CRIU does not know is met."""

    def __init__(self, host: Host) -> None:
        """Begin.

        Args:
            host: what runs this process.
        """
        self._context = DumpContext(host.criu, host.fast_path)
        self._mounts = Mounts(self._context)
        self._files = Files(self._context)
        self._found_peers: set[bytes] = set()  # names that a restore will follow to their sockets
        self._named: set[tuple[int, int]] = set()  # watched files that CRIU was told, by device

    def link_read(self, fd: int, link: bytes, found: FileStat) -> bool:
        """Take note of a file that CRIU is about to dump as a regular file.

        Args:
            fd: the file in this process.
            link: its /proc/self/fd link, which starts with "/".
            found: stat of the file.

        Returns:
            True when it is recorded, False when it is CRIU's business.

        Raises:
            DetachedError: it cannot be restored faithfully.
        """
        file = OpenFile(fd, found, link)
        try:
            return self._record(file)
        except DetachedError as error:
            if not self._is_left_to_shell_job(file.stat):
                raise
            log.warn(
                f"can't dump the terminal {quote(link)} (mount {file.stat.mnt_id}) on a detached"
                f" mount, unless CRIU is to replace it (--shell-job): {error}"
            )
            return False

    def ext_file(self, fd: int, file_id: int, found: FileStat) -> bool:
        """Take note of a device that CRIU leaves to plugins.

        Args:
            fd: the file in this process.
            file_id: CRIU's id of the open file.
            found: stat of the file.

        Returns:
            As link_read.

        Raises:
            DetachedError: it cannot be restored faithfully.
        """
        file = OpenFile(fd, found)
        if not self._record(file):
            return False
        log.warn(
            f"the device {quote(file.link)} will be opened anew at restore: what its driver keeps"
            " for the open file is not saved"
        )
        self._context.records.ext_file(
            ExtFile(
                id=file_id,
                flags=kernel.file_flags(fd),
                pos=_position(fd),
                mnt_id=file.stat.mnt_id,
                ino=file.stat.ino,
            )
        )
        return True

    def socket_bound(self, fd: int, name: bytes, found: FileStat) -> SocketAnswer | None:
        """Take note of the name of a unix socket that CRIU is about to dump.

        Args:
            fd: the socket's file.
            name: that the socket is bound to.
            found: stat of the file.

        Returns:
            What CRIU is to be told; None: the file is its own business.

        Raises:
            DetachedError: it cannot be restored faithfully.
        """
        file = OpenFile(fd, found)
        mount = self._mounts.mount_of(file)
        if mount is None:
            return None
        return self._sockets.note(name, mount.rooted(file), mount)

    def check_peer(self, name: bytes) -> None:
        """See whether a restore will find a socket outside of the dump that CRIU connects to.

        Args:
            name: that it is bound to.

        Raises:
            DetachedError: it is on a detached mount.
        """
        from criu_detached.dump.kinds import peers  # few dumps need it

        if name not in self._found_peers:
            machine = self._context.machine
            root = peers.root_of_names(self._context.criu, machine)
            peers.check_peer(name, root, self._mounts.classifier, machine)
            self._found_peers.add(name)

    def find_watched(self) -> None:
        """Take note of watched files, one of which CRIU has found on no mount.

        Raises:
            DetachedError: one cannot be restored faithfully.
        """
        for watch in self._watched.unnamed():
            self._watched.name(watch, self._record_watched(watch))
            self._named.add((watch.dev, watch.ino))

    def is_watched_ghost(self, fd: int) -> bool:
        """Tell whether a deleted file that is watched will be recreated on a detached mount.

        Args:
            fd: the file, opened on a mount that CRIU knows.
        """
        return self._watched.claim(fd)

    def is_detached(self, fd: int, found: FileStat) -> bool:
        """Tell whether an open file is on a mount that the plugin is there for.

        Args:
            fd: the file.
            found: stat of it.
        """
        return self._mounts.classifier.classify(OpenFile(fd, found)).is_ours

    def flush(self) -> None:
        """Write all that is not written yet: CRIU is about to write its last image.

        Raises:
            DetachedError: it cannot be written, or what it is could not come back.
        """
        if self._context.recording.begun():
            left = self._context.criu.deleted_files_left()
            self._files.finish(self._mounts.finish(), self._named, left)
            self._context.recording.finish()

    def _record(self, file: OpenFile, watched: bool = False) -> bool:
        """Record a file, unless it is CRIU's business."""
        mount = self._mounts.mount_of(file)
        if mount is not None:
            self._files.record(file, mount, watched)
        return mount is not None

    def _record_watched(self, watch: Watch) -> FileStat:
        """Record a watched file on the first mount that will do; return its stat there."""
        refusal = ""
        for file in self._watched.files(watch):
            try:
                if stat.S_ISLNK(file.stat.mode):
                    raise DetachedError("CRIU cannot restore a watch of a symlink: end the watch")
                if self._record(file, watched=True):
                    return file.stat
            except DetachedError as error:
                refusal = f"{quote(file.link)}: {error}"
        raise self._watched.refusal(watch, refusal)

    def _is_left_to_shell_job(self, found: FileStat) -> bool:
        """Tell a terminal that CRIU may dump without its file."""
        if not is_slave(found):
            return False
        from criu_detached.dump.kinds.terminals import is_left_to_shell_job  # few dumps need it

        return is_left_to_shell_job(found, self._context.machine)

    @once
    def _sockets(self) -> Sockets:
        """The names of sockets."""
        from criu_detached.dump.kinds.sockets import Sockets  # few dumps need it

        return Sockets(self._context)

    @once
    def _watched(self) -> WatchedFiles:
        """What finds watched files."""
        from criu_detached.dump.kinds.watched import WatchedFiles  # few dumps need it

        return WatchedFiles(self._context)


def _position(fd: int) -> int:
    """File position of a device; those that cannot seek have none."""
    try:
        return os.lseek(fd, 0, os.SEEK_CUR)
    except OSError:
        return 0
