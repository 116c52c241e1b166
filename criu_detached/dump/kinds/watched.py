# SPDX-License-Identifier: GPL-2.0-only
"""Watches of inodes that CRIU finds on no mount, at dump: from an inode to the record of a file.

A watch holds an inode and no mount, so any mount that shows it will do: one that a dumped
task has a file on, or a clone of a bind source. The file is recorded there as if it was
open. CRIU gets the name of the record as the path of the watch (plugin/shim/watch_names.h).
"""

from __future__ import annotations

import os

from criu_detached import kernel, paths
from criu_detached.criu import log
from criu_detached.dump.describe import roots
from criu_detached.dump.observe.directories import climb
from criu_detached.dump.observe.processes import files_of_tasks
from criu_detached.dump.observe.watches import all_watches, watches_of
from criu_detached.dump.open_file import OpenFile, Owner
from criu_detached.errors import DetachedError
from criu_detached.kernel import tasks
from criu_detached.kernel.devnum import format_dev
from criu_detached.kernel.fds import Fd, link_of, reopen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from criu_detached.criu.criu import Criu
    from criu_detached.dump.context import DumpContext
    from criu_detached.dump.observe.watches import Watch
    from criu_detached.kernel import FileStat

    Handle = tuple[int, bytes]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY


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

    def __init__(self, context: DumpContext) -> None:
        """Begin with none.

        Args:
            context: of the dump.
        """
        self._context = context
        self._superblocks: dict[int, _Superblock] = {}  # by device
        self._done: set[tuple[int, int]] = set()
        self._handles: dict[tuple[int, int], Handle] = {}  # of those that want a name
        self._claimed: set[tuple[int, int]] = set()

    def unnamed(self) -> Iterator[Watch]:
        """Yield the watches of the inotify and fanotify fds in this process that want a name.

        These are what CRIU dumps next. It looks for one of them in vain, most likely for the
        first; it takes the last name first, and remembers what it has come by.

        Raises:
            DetachedError: two files are one to CRIU, which knows them by device and inode number.
        """
        for watch in reversed(list(watches_of("self"))):
            key = watch.dev, watch.ino
            if self._handles.get(key, watch.handle) != watch.handle:
                raise self.refusal(
                    watch,
                    "another file that is watched has the same number (the filesystem repeats"
                    " inode numbers): end one of the watches",
                )
            if key in self._done:
                continue
            self._done.add(key)
            if key not in self._claimed and self._context.sources.may_be_known(*key):
                log.info(f"the watch of {_describe(watch)} is left to CRIU")
            else:
                self._handles[key] = watch.handle
                yield watch

    def files(self, watch: Watch) -> Iterator[OpenFile]:
        """Yield a watched file as each mount shows it that leads to it; it is closed after.

        Args:
            watch: of the file.
        """
        for fd in self._superblock(watch.dev).files(watch.handle):
            with fd:
                yield OpenFile.of(fd)

    def name(self, watch: Watch, recorded: FileStat) -> None:
        """Have CRIU find a watched file by the name of its record.

        Args:
            watch: of the file.
            recorded: stat of the file, as it is recorded.
        """
        mnt_id, ino = recorded.mnt_id, recorded.ino
        log.info(f"the watch of {_describe(watch)} is of inode {ino} on mount {mnt_id}")
        self._context.criu.watch_name_add(watch.dev, watch.ino, b"ile[%x:%x]" % (mnt_id, ino))

    def refusal(self, watch: Watch, why: str) -> DetachedError:
        """Return what is to be said of a watched file that is not recorded.

        Args:
            watch: of the file.
            why: it is not, as the last mount shows it that leads to it; empty: none does.
        """
        return DetachedError(
            f"{_describe(watch)}: "
            + (
                why
                or "no mount leads to it, neither one that the dumped processes have a directory"
                " of, nor an attached one where criu runs: mount its filesystem somewhere, or end"
                " the watch"
            )
        )

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
            self._superblocks[dev] = _Superblock(dev, self._context)
        return self._superblocks[dev]


class _Superblock:
    """What leads to the files of a superblock; all of it stays open to the end of the dump."""

    def __init__(self, dev: int, context: DumpContext) -> None:
        self._held: dict[Handle, Owner] = {}
        self._mounts: dict[int, _Mount] = {}  # by mount id
        self._sources = (source.fd for source in context.sources.outside(dev))
        self._clones: list[_Mount] = []
        for pid, name, fd in files_of_tasks(context.machine, dev):
            file = OpenFile.of(fd, Owner(pid, name))
            if not context.criu.mount_known(file.stat.mnt_id):
                self._hold(file)

    def _hold(self, file: OpenFile) -> None:
        """Take note of a file that a task has."""
        owner = file.owner
        assert owner is not None
        theirs = _duplicate(owner)
        handle = _handle_of(file.fd)
        # What can be read is best: a filesystem in memory is saved without another open.
        readable = theirs is not None and kernel.is_readable(theirs)
        if handle is not None and (handle not in self._held or readable):
            self._held[handle] = owner
        if theirs is None and file.is_directory:
            try:
                theirs = reopen(file.fd, _DIRECTORY)
            except OSError:
                return
        if theirs is not None and not self._hold_mount(theirs, file):
            theirs.close()

    def _hold_mount(self, theirs: Fd, file: OpenFile) -> bool:
        """Keep an fd if it leads to more of its mount than what is kept."""
        mnt_id, known = file.stat.mnt_id, self._mounts.get(file.stat.mnt_id)
        if known is not None and (known.root is not None or not file.is_directory):
            return False
        try:
            self._mounts[mnt_id] = _Mount(theirs, file.is_directory)
        except OSError:
            return False  # a directory that is not beneath the root of its mount any more
        return True

    def holds(self, handle: Handle) -> bool:
        """Tell whether a dumped task has a file, by its handle, on a mount that CRIU knows not."""
        return handle in self._held

    def files(self, handle: Handle) -> Iterator[Fd]:
        """Yield an fd of a file on each mount that leads to it, the caller's.

        It is the very fd of a task, or an O_PATH one.
        """
        if handle in self._held:
            owner = self._held[handle]
            theirs = _duplicate(owner)
            yield Fd.open(owner.path, kernel.O_PATH) if theirs is None else theirs
        for mount in self._all_mounts():
            fd = mount.find(handle)
            if fd is not None:
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

    def __init__(self, opened: Fd, is_directory: bool) -> None:
        """Take an fd of a file on it that is no O_PATH one, and stays open."""
        self._opened = opened
        self.root = _climb(opened) if is_directory else None

    def find(self, handle: Handle) -> Fd | None:
        """An O_PATH fd, the caller's, of a file that has a name on the mount."""
        try:
            with kernel.open_by_handle(self._opened, handle, kernel.O_PATH) as fd:
                return self._find_name(OpenFile.of(fd))
        except OSError:
            return None

    def _find_name(self, file: OpenFile) -> Fd | None:
        """Open by its name what was opened by its handle, which may be out of the mount."""
        if self.root is None:
            if not file.is_directory:
                return None
            self.root = _climb(file.fd)
        path = paths.below(file.link, link_of(self.root))
        if path is None or not roots.is_at(self.root, path, file):
            # The kernel did not know its name any more: it is to be found, if it has one.
            path = roots.search_inode(self.root, file) if _is_nameless(file) else None
        return paths.open_at(self.root, path) if path is not None else None


def _is_nameless(file: OpenFile) -> bool:
    return file.link == b"/" and file.stat.nlink > 0 and not file.is_directory


def _climb(directory: int) -> Fd:
    """An O_PATH fd of the root of the mount that a directory is on; raises OSError."""
    return climb(Fd.open(b".", kernel.O_PATH | os.O_DIRECTORY, directory))


def _duplicate(owner: Owner) -> Fd | None:
    """A duplicate of the very fd of a task; None: it is none, or an O_PATH one."""
    if owner.fd is None:
        return None
    try:
        theirs = tasks.fd_of_process(owner.pid, owner.fd)
    except OSError:
        return None
    if kernel.file_flags(theirs) & os.O_PATH:
        theirs.close()
        return None
    return theirs


def _clone(source: int) -> _Mount:
    """A detached mount that shows what a bind source shows; raises OSError."""
    with kernel.clone_mount(source) as tree:  # it is a detached one then
        opened = Fd.open(b".", _DIRECTORY, tree)
    return _Mount(opened, is_directory=True)


def _handle_of(fd: int) -> Handle | None:
    """The file handle of an open file, as fdinfo shows it of a watched one."""
    for flags in (kernel.AT_HANDLE_FID, 0):
        try:
            return kernel.name_to_handle(fd, flags)
        except OSError:
            continue  # before Linux 6.5, or the filesystem has none
    return None


def _describe(watch: Watch) -> str:
    return f"inode {watch.ino} on device {format_dev(watch.dev)}"
