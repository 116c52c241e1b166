# SPDX-License-Identifier: GPL-2.0-only
"""Watches of inodes that CRIU finds on no mount, at dump: from an inode to the record of a file.

A watch holds an inode and no mount, so any mount that shows it will do: one that a dumped
task has a file on, or a clone of a bind source. The file is recorded there as if it was
open. CRIU gets the name of the record as the path of the watch (plugin/shim/watch_names.h).
"""

from __future__ import annotations

import os
import stat

from criu_detached import kernel, paths
from criu_detached.criu import log
from criu_detached.dump.describe import roots
from criu_detached.dump.observe.directories import climb
from criu_detached.dump.observe.processes import files_of_tasks
from criu_detached.dump.observe.watches import all_watches, watches_of
from criu_detached.errors import DetachedError, quote
from criu_detached.kernel import tasks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from criu_detached.criu.criu import Criu
    from criu_detached.dump.describe.sources import SourceFinder
    from criu_detached.dump.observe.watches import Watch

    Record = Callable[[int], tuple[int, int] | None]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def pass_by_watches(criu: Criu) -> None:
    """Give some name to each watched inode, for CRIU to note in a pre-dump.

    The tasks run by then, and nothing tells them from others. A dump asks for the names
    again, and they are dropped then.
    """
    found = {(watch.dev, watch.ino) for watch in all_watches()}
    for number, (dev, ino) in enumerate(found):
        criu.watch_name_add(dev, ino, b"ile[0:%x]" % number)


class WatchedFiles:
    """The watched files of one dump that CRIU does not find."""

    def __init__(self, criu: Criu, finder: SourceFinder, record: Record) -> None:
        """Take what it needs.

        Args:
            criu: CRIU.
            finder: gives the attached mounts.
            record: makes the record of an open file, and returns its mount id and inode;
                None when its mount is not detached. Raises DetachedError.
        """
        self._criu = criu
        self._finder = finder
        self._record = record
        self._superblocks: dict[int, _Superblock] = {}  # by device
        self._done: set[tuple[int, int]] = set()
        self._claimed: set[tuple[int, int]] = set()
        self.named: set[tuple[int, int]] = set()  # device and inode

    def find(self) -> None:
        """Name the files that the inotify and fanotify fds in this process watch.

        These are what CRIU dumps next. It looks for one of them in vain, most likely for the
        first; it takes the last name first, and remembers what it has come by.

        Raises:
            DetachedError: one cannot be restored faithfully.
        """
        for watch in reversed(list(watches_of("self"))):
            key = watch.dev, watch.ino
            if key in self._done:
                continue
            self._done.add(key)
            if key not in self._claimed and self._finder.may_be_known(*key):
                log.info(f"the watch of {_describe(watch)} is left to CRIU")
                continue
            mnt_id, ino = self._record_watched(watch)
            log.info(f"the watch of {_describe(watch)} is of inode {ino} on mount {mnt_id}")
            name = b"ile[%x:%x]" % (mnt_id, ino)
            self.named.add(key)
            self._criu.watch_name_add(watch.dev, watch.ino, name)

    def claim(self, fd: int) -> bool:
        """Tell whether a deleted file that is watched is held on a detached mount.

        Then it is named when CRIU looks for it, whatever mounts CRIU knows.

        Args:
            fd: the file.
        """
        handle = _handle_of(fd)
        for watch in watches_of("self"):
            if watch.handle == handle and self._superblock(watch.dev).holds(handle):
                self._claimed.add((watch.dev, watch.ino))
                self._done.discard((watch.dev, watch.ino))
                return True
        return False

    def _superblock(self, dev: int) -> _Superblock:
        if dev not in self._superblocks:
            self._superblocks[dev] = _Superblock(dev, self._finder, self._criu.mount_known)
        return self._superblocks[dev]

    def _record_watched(self, watch: Watch) -> tuple[int, int]:
        """Mount id and inode of the record of a watched file."""
        refusal = (
            "no mount leads to it, neither one that the dumped processes have a directory of, nor"
            " an attached one where criu runs: mount its filesystem somewhere, or end the watch"
        )
        for fd in self._superblock(watch.dev).files(watch.handle):
            link = os.readlink(b"/proc/self/fd/%d" % fd)
            try:
                if stat.S_ISLNK(kernel.fstat(fd).mode):
                    raise DetachedError("CRIU cannot restore a watch of a symlink: end the watch")
                found = self._record(fd)
                if found is not None:
                    return found
            except DetachedError as error:
                refusal = f"{quote(link)}: {error}"
            finally:
                os.close(fd)
        raise DetachedError(f"{_describe(watch)}: {refusal}")


class _Superblock:
    """What leads to the files of a superblock; all of it stays open to the end of the dump."""

    def __init__(self, dev: int, finder: SourceFinder, known: Callable[[int], int]) -> None:
        self._held: dict[tuple[int, bytes], tuple[int, str]] = {}  # who has it, by file handle
        self._mounts: dict[int, _Mount] = {}  # by mount id
        self._sources = (source.fd for source in finder.outside(dev))
        self._clones: list[_Mount] = []
        for pid, name, fd in files_of_tasks(dev):
            if not known(kernel.fstat(fd).mnt_id):
                self._hold(pid, name, fd)

    def _hold(self, pid: int, name: str, fd: int) -> None:
        """Take note of a file that a task has."""
        facts = kernel.fstat(fd)
        theirs = _duplicate(pid, name)
        handle = _handle_of(fd)
        # What can be read is best: a filesystem in memory is saved without another open.
        if handle is not None and (
            handle not in self._held or (theirs >= 0 and kernel.is_readable(theirs))
        ):
            self._held[handle] = pid, name
        known = self._mounts.get(facts.mnt_id)
        is_directory = stat.S_ISDIR(facts.mode)
        try:
            if theirs < 0 and is_directory:
                theirs = os.open(b"/proc/self/fd/%d" % fd, _DIRECTORY)
            if theirs >= 0 and (known is None or (is_directory and known.root < 0)):
                self._mounts[facts.mnt_id] = _Mount(theirs, is_directory)
                return
        except OSError:
            pass  # a directory that is not beneath the root of its mount any more
        if theirs >= 0:
            os.close(theirs)

    def holds(self, handle: tuple[int, bytes]) -> bool:
        """Tell whether a dumped task has a file, by its handle, on a mount that CRIU knows not."""
        return handle in self._held

    def files(self, handle: tuple[int, bytes]) -> Iterator[int]:
        """Yield an fd of a file on each mount that leads to it, the caller's.

        It is the very fd of a task, or an O_PATH one.
        """
        if handle in self._held:
            pid, name = self._held[handle]
            theirs = _duplicate(pid, name)
            yield theirs if theirs >= 0 else os.open(f"/proc/{pid}/{name}", kernel.O_PATH)
        for mount in self._all_mounts():
            fd = mount.find(handle)
            if fd >= 0:
                yield fd

    def _all_mounts(self) -> Iterator[_Mount]:
        yield from self._mounts.values()
        yield from self._clones
        for source in self._sources:
            try:
                clone = _clone(source)
            except OSError:
                continue  # it is no directory, or is not to be cloned
            self._clones.append(clone)
            yield clone


class _Mount:
    """A mount on which files are opened by their handles."""

    def __init__(self, opened: int, is_directory: bool) -> None:
        """Take an fd of a file on it that is no O_PATH one, and stays open."""
        self._opened = opened
        self.root = _climb(opened) if is_directory else -1

    def find(self, handle: tuple[int, bytes]) -> int:
        """An O_PATH fd of a file that has a name on the mount; else -1."""
        try:
            fd = kernel.open_by_handle(self._opened, handle, kernel.O_PATH)
        except OSError:
            return -1
        try:
            return self._find_name(fd)
        except OSError:
            return -1
        finally:
            os.close(fd)

    def _find_name(self, fd: int) -> int:
        """Open by its name what was opened by its handle, which may be out of the mount."""
        facts = kernel.fstat(fd)
        if self.root < 0:
            if not stat.S_ISDIR(facts.mode):
                return -1
            self.root = _climb(fd)
        base = os.readlink(b"/proc/self/fd/%d" % self.root)
        link = os.readlink(b"/proc/self/fd/%d" % fd)
        path = paths.below(link, base)
        if path is None or not roots.is_at(self.root, path, facts):
            # The kernel did not know its name any more: it is to be found, if it has one.
            path = roots.search_inode(self.root, facts) if _is_nameless(link, facts) else None
        return paths.open_at(self.root, path) if path is not None else -1


def _is_nameless(link: bytes, facts: kernel.FileStat) -> bool:
    return link == b"/" and facts.nlink > 0 and not stat.S_ISDIR(facts.mode)


def _climb(directory: int) -> int:
    """An O_PATH fd of the root of the mount that a directory is on; raises OSError."""
    return climb(os.open(b".", kernel.O_PATH | os.O_DIRECTORY, dir_fd=directory))


def _duplicate(pid: int, name: str) -> int:
    """A duplicate of the very fd of a task; -1: it is none, or an O_PATH one."""
    directory, _, number = name.partition("/")
    if directory != "fd":
        return -1
    try:
        theirs = tasks.fd_of_process(pid, int(number))
    except OSError:
        return -1
    if kernel.file_flags(theirs) & os.O_PATH:
        os.close(theirs)
        return -1
    return theirs


def _clone(source: int) -> _Mount:
    """A detached mount that shows what a bind source shows; raises OSError."""
    tree = kernel.clone_mount(source)
    try:
        opened = os.open(b".", _DIRECTORY, dir_fd=tree)
    finally:
        os.close(tree)  # now it is a detached one
    return _Mount(opened, is_directory=True)


def _handle_of(fd: int) -> tuple[int, bytes] | None:
    """The file handle of an open file, as fdinfo shows it of a watched one."""
    for flags in (kernel.AT_HANDLE_FID, 0):
        try:
            return kernel.name_to_handle(fd, flags)
        except OSError:
            continue  # before Linux 6.5, or the filesystem has none
    return None


def _describe(watch: Watch) -> str:
    return f"inode {watch.ino} on device {os.major(watch.dev)}:{os.minor(watch.dev)}"
