# SPDX-License-Identifier: GPL-2.0-only
"""The dump: what CRIU asks of it, from a link that it reads to a record.

link read -> known to CRIU? (the shim) -> classify the mount by fd -> describe mount
and file -> record.
"""

from __future__ import annotations

import os

from criu_detached import kernel
from criu_detached.criu import log
from criu_detached.dump.describe.sources import SourceFinder
from criu_detached.dump.files import Files, check_owner
from criu_detached.dump.kinds.terminals import is_left_to_shell_job
from criu_detached.dump.mounts import Mounts
from criu_detached.dump.observe.processes import root_task
from criu_detached.dump.writing import Recording
from criu_detached.errors import DetachedError, quote
from criu_detached.images.records import ExtFile
from criu_detached.kernel import FileStat
from criu_detached.settings import Options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.criu.host import Host
    from criu_detached.dump.describe.mount import DetachedMount
    from criu_detached.dump.kinds.sockets import SocketAnswer, Sockets
    from criu_detached.dump.kinds.watched import WatchedFiles
    from criu_detached.images.datafile import DataFileWriter


class Dump:
    """One dump. Created when the first file on a mount that CRIU does not know is met."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._settings: Options | None = None
        self._finder = SourceFinder(host.criu.dumps_mount_namespace(), host.criu.mount_known)
        self._recording = Recording(host)
        self._mounts = Mounts(
            host, self._finder, self._recording, self._options, self._the_contents
        )
        self._files = Files(host, self._mounts, self._recording, self._options, self._the_contents)
        # Few dumps need these, and they take long to load.
        self._contents: DataFileWriter | None = None
        self._sockets: Sockets | None = None
        self._watched: WatchedFiles | None = None
        self._found_peers: set[bytes] = set()  # names that a restore will follow to their sockets

    def link_read(self, fd: int, link: bytes, facts: FileStat) -> bool:
        """Take note of a file that CRIU is about to dump as a regular file.

        Args:
            fd: the file in this process.
            link: its /proc/self/fd link, which starts with "/".
            facts: of the file.

        Returns:
            True when it is recorded, False when it is CRIU's business.

        Raises:
            DetachedError: it cannot be restored faithfully.
        """
        try:
            mount = self._mounts.mount_of(fd, link, facts)
            if mount is None:
                return False
            self._files.record(fd, link, facts, mount)
        except DetachedError as error:
            if not is_left_to_shell_job(facts):
                raise
            log.warn(
                f"can't dump the terminal {quote(link)} (mount {facts.mnt_id}) on a detached mount,"
                f" unless CRIU is to replace it (--shell-job): {error}"
            )
            return False
        return True

    def ext_file(self, fd: int, file_id: int, facts: FileStat) -> bool:
        """Take note of a device that CRIU leaves to plugins.

        Args:
            fd: the file in this process.
            file_id: CRIU's id of the open file.
            facts: of the file.

        Returns:
            As link_read.

        Raises:
            DetachedError: it cannot be restored faithfully.
        """
        link, mount = self._link_and_mount(fd, facts)
        if mount is None:
            return False
        self._files.record(fd, link, facts, mount)
        log.warn(
            f"the device {quote(link)} will be opened anew at restore: what its driver keeps for"
            " the open file is not saved"
        )
        flags = kernel.file_flags(fd)
        position = _position(fd)
        self._recording.writer().ext_file(
            ExtFile(id=file_id, flags=flags, pos=position, mnt_id=facts.mnt_id, ino=facts.ino)
        )
        return True

    def socket_bound(self, fd: int, name: bytes, facts: FileStat) -> SocketAnswer | None:
        """Take note of the name of a unix socket that CRIU is about to dump.

        Args:
            fd: the socket's file.
            name: that the socket is bound to.
            facts: of the file.

        Returns:
            What CRIU is to be told; None: the file is its own business.

        Raises:
            DetachedError: it cannot be restored faithfully.
        """
        link, mount = self._link_and_mount(fd, facts)
        if mount is None:
            return None
        file = mount.name_of(fd, self._mounts.link_in(mount, link), facts)
        answer, new = self._the_sockets().note(name, file, facts.nlink, mount)
        if new is not None:
            if not new.deleted and mount.root >= 0:
                check_owner(mount, file.path, facts)
            self._recording.writer().bound_socket(new)
        return answer

    def check_peer(self, name: bytes) -> None:
        """See whether a restore will find a socket outside of the dump that CRIU connects to.

        Args:
            name: that it is bound to.

        Raises:
            DetachedError: it is on a detached mount.
        """
        from criu_detached.dump.kinds.peers import check_peer  # few dumps need it

        if name in self._found_peers:
            return
        # In the first task's mount namespace, if it is dumped: prep_unix_sk_cwd, criu/sk-unix.c
        pid = root_task() if self._host.criu.dumps_mount_namespace() else 0
        check_peer(name, f"/proc/{pid}/root" if pid else "/", self.is_detached)
        self._found_peers.add(name)

    def find_watched(self) -> None:
        """Take note of watched files, one of which CRIU has found on no mount.

        Raises:
            DetachedError: one cannot be restored faithfully.
        """
        self._the_watched().find()

    def is_watched_ghost(self, fd: int) -> bool:
        """Tell whether a deleted file that is watched will be made anew on a detached mount.

        Args:
            fd: the file, opened on a mount that CRIU knows.
        """
        return self._the_watched().claim(fd)

    def _record_watched(self, fd: int) -> tuple[int, int] | None:
        """Record a file that is watched; its mount id and inode, or None: not detached."""
        facts = kernel.fstat(fd)
        link, mount = self._link_and_mount(fd, facts)
        if mount is None:
            return None
        self._files.record(fd, link, facts, mount, watched=True)
        return facts.mnt_id, facts.ino

    def _link_and_mount(self, fd: int, facts: FileStat) -> tuple[bytes, DetachedMount | None]:
        """A file's /proc/self/fd link, which CRIU has not read, and its mount, if detached."""
        link = os.readlink(b"/proc/self/fd/%d" % fd)
        return link, self._mounts.mount_of(fd, link, facts)

    def is_detached(self, fd: int, facts: FileStat) -> bool:
        """Tell whether an open file is on a mount that the plugin is there for."""
        return self._mounts.is_detached(fd, facts)

    def flush(self) -> None:
        """Write all that is not written yet: CRIU is about to write its last image.

        Raises:
            DetachedError: it cannot be written, or what it is could not come back.
        """
        if self._recording.begun():
            self._mounts.finish(self._files.made_anew)
            named = self._watched.named if self._watched else set()
            self._files.made_anew.check(named, self._host.criu.deleted_files_left())
            self._recording.finish()

    def _the_contents(self) -> DataFileWriter:
        """The data file."""
        if self._contents is None:
            from criu_detached.images.datafile import DataFileWriter

            self._contents = DataFileWriter(self._host.criu.image_dir())
        return self._contents

    def _the_sockets(self) -> Sockets:
        if self._sockets is None:
            from criu_detached.dump.kinds.sockets import Sockets

            self._sockets = Sockets(self._host.criu, self._finder)
        return self._sockets

    def _the_watched(self) -> WatchedFiles:
        if self._watched is None:
            from criu_detached.dump.kinds.watched import WatchedFiles

            self._watched = WatchedFiles(self._host.criu, self._finder, self._record_watched)
        return self._watched

    def _options(self) -> Options:
        """The settings, read when the first is asked for."""
        if self._settings is None:
            self._settings = Options(self._host.criu.image_dir(), self._host.criu.plugin_options())
        return self._settings


def _position(fd: int) -> int:
    """File position of a device; those that cannot seek have none."""
    try:
        return os.lseek(fd, 0, os.SEEK_CUR)
    except OSError:
        return 0
