# SPDX-License-Identifier: GPL-2.0-only
"""What holds a filesystem and is no process: a mount in a tree, a loop device, an overlay.

That is not told without a question to filesystems of others, who may not answer. So a child asks.
"""

from __future__ import annotations

import errno
import os
import stat

from criu_detached import kernel, paths
from criu_detached.dump.observe import overlays, trees
from criu_detached.errors import why
from criu_detached.kernel import namespaces, statmount, walk
from criu_detached.kernel.children import Answer, ask_each
from criu_detached.kernel.devnum import format_dev, huge_decode_dev
from criu_detached.kernel.fds import Fd
from criu_detached.kernel.loop import loop_status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from criu_detached.kernel.statmount import StatMount
    from criu_detached.kernel.walk import MountTable, Seen

_PLACES = 64  # files of a mount that are tried
_FUSE_DEVICE = os.makedev(10, 229)  # /dev/fuse (Documentation/admin-guide/devices.txt)


class HeldMount:
    """A mount that is attached nowhere, as far as is known, and what others have on it."""

    __slots__ = ("dev", "mnt_id", "places")

    def __init__(self, dev: int, mnt_id: int, held: Iterator[Seen]) -> None:
        self.dev = dev
        self.mnt_id = mnt_id
        # Directories first: they lead to all of a tree.
        files = [seen for seen in held if not seen.gone and seen.what != walk.SOCKET]
        self.places = sorted(files, key=lambda seen: not _may_be_directory(seen))[:_PLACES]

    @property
    def has_directory(self) -> bool:
        """Whether somebody has a directory there, which may lead to other mounts."""
        return any(map(_may_be_directory, self.places))


def _may_be_directory(seen: Seen) -> bool:
    return stat.S_ISDIR(seen.mode) or not seen.mode  # of another user's FUSE it is not told


class Elsewhere:
    """The answers, by the devices of superblocks."""

    def __init__(self) -> None:
        self._holders: dict[int, str] = {}
        self._overlays = overlays.Verdicts()
        self._failure = ""  # why another mount may lead to any filesystem
        self.members: set[int] = set()  # ids of the mounts of trees of several that others hold

    def holder(self, dev: int) -> str | None:
        """Name what holds a filesystem, for a message; None: nothing does.

        Args:
            dev: device of its superblock.

        Raises:
            OSError: that is not told.
        """
        found = self._holders.get(dev) or self._overlays.holder(dev)
        if found is None and self._failure:
            raise OSError(self._failure)
        return found

    def ask(self, mounts: list[HeldMount], attached: MountTable) -> None:
        """Ask for all.

        Args:
            mounts: those that others have something on.
            attached: the attached mounts.
        """
        self.ask_trees(mounts)
        loops = list(_loop_devices())
        listed = overlays.list_overlays(attached)
        questions: list[Callable[[], bytes]] = []
        questions += [_question(_superblock_of_loop, name) for name in loops]
        questions += [_question(overlays.look_at, overlay) for overlay in listed]
        answers = iter(ask_each(questions) if questions else [])
        for name in loops:
            self._note_loop(name, next(answers))
        self._overlays.note([(overlay, next(answers)) for overlay in listed])

    def ask_trees(self, mounts: list[HeldMount]) -> None:
        """Ask which superblocks mounts lead to.

        Args:
            mounts: those that others have something on.
        """
        questions = [_question(_superblocks_in_tree, mount) for mount in mounts]
        answers = ask_each(questions) if questions else []
        for mount, answer in zip(mounts, answers, strict=True):
            self._note_tree(mount, answer)

    def _note_tree(self, mount: HeldMount, answer: Answer) -> None:
        who = f"process {mount.places[0].pid}"
        try:
            devices, _, members = answer.data.partition(b";")
        except TimeoutError:
            self._failure = (
                f"{who} has a file on mount {mount.mnt_id} (device {format_dev(mount.dev)}), which"
                f" does not answer{_server_of(mount.dev)}"
            )
            return
        except OSError as error:
            self._failure = (
                f"{who} has a file on mount {mount.mnt_id} (device {format_dev(mount.dev)}), which"
                f" cannot be looked at: {why(error)}"
            )
            return
        self._holders.update((int(device), who) for device in devices.split())
        self.members.update(map(int, members.split()))

    def _note_loop(self, name: str, answer: Answer) -> None:
        try:
            self._holders.setdefault(int(answer.data), f"loop device {name}")
        except TimeoutError:
            pass  # a filesystem that does not answer is none that lives in memory
        except OSError as error:
            if error.errno not in (errno.ENXIO, errno.ENOENT):  # by now it has no file
                self._failure = f"loop device {name} does not tell its file: {why(error)}"


def _question(ask: Callable[..., bytes], about: object) -> Callable[[], bytes]:
    return lambda: ask(about)


# --- trees ---


def _superblocks_in_tree(mount: HeldMount) -> bytes:
    """Devices of the superblocks in the tree that a mount is in; and ids of the tree's mounts."""
    for seen in mount.places:
        try:
            fd = Fd.open(seen.path, kernel.O_PATH)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESRCH):
                continue  # it ended
            raise
        with fd:
            if kernel.glance(b"", fd).mnt_id != mount.mnt_id:
                continue  # it is closed, and its number is another file's
            if _is_attached(fd):
                return b";"  # below the root of a namespace, where no path leads
            try:
                return _look_around(fd)
            except FileNotFoundError:
                continue  # it is deleted: there may be another one
    return b";"


def _is_attached(fd: int) -> bool:
    try:
        unique = kernel.mnt_id_unique(fd)
        return any(statmount.mount_in_ns(unique, ns_id) for ns_id in namespaces.mount_ns_ids())
    except OSError:
        return False  # the kernel does not tell


def _look_around(fd: int) -> bytes:
    """As _superblocks_in_tree, from one file; raises OSError.

    The kernel clones an anonymous mount, and no detached one: what was below that is gone. Cloning
    asks the filesystem nothing, and to climb does.
    """
    devices, members = _superblock_by_fd(fd), set()
    found, top = _view(fd)
    devices.update(known.sb_dev for known in found)
    if top is not None:
        with top:
            found = trees.view(top)
            devices.update(known.sb_dev for known in found)
            for known in found if len(found) > 1 else ():
                path = paths.below(known.mnt_point, found[0].mnt_point)
                how = kernel.O_PATH | kernel.O_NOFOLLOW, kernel.REACH_MOUNT
                with kernel.openat2(top, path or paths.ROOT, *how) as member:
                    members.add(kernel.glance(b"", member).mnt_id)
    return (
        b" ".join(b"%d" % dev for dev in devices)
        + b";"
        + b" ".join(b"%d" % mnt_id for mnt_id in members)
    )


def _superblock_by_fd(fd: int) -> set[int]:
    try:
        return {statmount.by_fd(fd, statmount.STATMOUNT_SB_BASIC).sb_dev}
    except OSError:
        return set()  # before Linux 7.0, and of anonymous mounts


def _view(fd: int) -> tuple[list[StatMount], Fd | None]:
    """What is mounted below a file, and, if it is a directory of a tree, the root of that."""
    try:
        found = trees.view(fd)
        return found, _climb(fd) if found else None
    except FileNotFoundError:  # it is deleted
        top = _climb(fd)
        if top is None:
            raise
        return [], top


def _climb(fd: int) -> Fd | None:
    """The root of the tree that a directory is in; None: it is none."""
    try:
        return Fd(trees.climb_tree(fd))
    except NotADirectoryError:
        return None


def _server_of(dev: int) -> str:
    """Name the process that serves a FUSE filesystem, for a message; empty: it is not known.

    Args:
        dev: device of the superblock; its minor number is that of the connection.
    """
    wanted = b"fuse_connection:\t%d\n" % os.minor(dev)
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            for fd in os.listdir(f"/proc/{pid}/fd"):
                if kernel.glance(f"/proc/{pid}/fd/{fd}").rdev == _FUSE_DEVICE:
                    with open(f"/proc/{pid}/fdinfo/{fd}", "rb") as info:
                        if wanted in info.read():
                            return f"; its server is process {pid}"
        except OSError:
            continue  # it ended, or is not to be looked at
    return ""


# --- loop devices ---


def _loop_devices() -> Iterator[str]:
    """Yield the names of loop devices that have a file."""
    if kernel.is_directory("/sys/block"):
        for name in os.listdir("/sys/block"):
            if name.startswith("loop") and kernel.is_directory(f"/sys/block/{name}/loop"):
                yield name


def _superblock_of_loop(name: str) -> bytes:
    with Fd.open(f"/dev/{name}", os.O_RDONLY | os.O_NONBLOCK) as fd:
        return b"%d" % huge_decode_dev(loop_status(fd).lo_device)
