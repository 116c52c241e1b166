# SPDX-License-Identifier: GPL-2.0-only
"""Anonymous mounts at dump: from a file on one to the records of all mounts of its tree.

A tree that open_tree or fsmount made has a mount at its root and perhaps others below.
Whoever holds a directory of it reaches all of them, so all are recorded. Who holds other
files alone reaches those alone, and the mount of each is recorded by itself.
"""

from __future__ import annotations

import errno
import os
import stat

from criu_detached import kernel, paths
from criu_detached.dump.describe.mount import DetachedMount
from criu_detached.dump.observe import trees
from criu_detached.dump.observe.classify import ANONYMOUS, Kind
from criu_detached.dump.observe.processes import held_directories, held_files, is_tree_held
from criu_detached.errors import DetachedError, quote
from criu_detached.images.records import BIND_SOURCE, SUPPLIED, is_in_namespace
from criu_detached.kernel import FileStat, mountinfo, statmount
from criu_detached.kernel.statmount import StatMount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Describe = Callable[[int, bytes, FileStat, Kind], DetachedMount]

_NO_VIEW = (
    "it is in an anonymous tree (open_tree) of several mounts whose mount namespace is gone, and"
    " the kernel does not tell which mounts those are: close it, or attach the tree with"
    " move_mount before the dump"
)


class Member:
    """A mount of an anonymous tree."""

    __slots__ = ("fd", "mnt_id", "parent", "path", "place", "statmount")

    def __init__(self, fd: int, path: bytes, statmount: StatMount) -> None:
        self.fd = fd  # of its root, O_PATH
        self.mnt_id = kernel.fstat(fd).mnt_id
        self.path = path  # from the root of the tree
        self.parent = 0  # the mount that it is on; 0: it is the root of the tree
        self.place = b""  # and where, beneath the root of that mount
        self.statmount = statmount


class AnonymousMounts:
    """The anonymous trees of one dump."""

    def __init__(self, describe: Describe) -> None:
        """Take what describes one mount, by a file on it, the file's link and facts."""
        self._describe_mount = describe
        self._members: dict[int, Member] = {}  # of the trees that are known, by mount id
        self._alone: set[int] = set()  # mounts that were recorded by themselves

    def describe(self, fd: int, link: bytes, facts: FileStat) -> list[DetachedMount]:
        """Describe the mounts of the tree that an open file is in, parents first.

        Args:
            fd: the file.
            link: its path from the root of the tree, as its link shows it.
            facts: of the file.

        Raises:
            DetachedError: one of them cannot be restored.
        """
        members = _members_of(fd) if stat.S_ISDIR(facts.mode) else _find_tree(facts.mnt_id)
        if not members:
            self._alone.add(facts.mnt_id)
            return [self._describe_alone(fd, link, facts)]
        try:
            mounts = self._describe_tree(members)
        except DetachedError:
            _close(members)
            raise
        self._members.update((member.mnt_id, member) for member in members)
        return mounts

    def _describe_tree(self, members: list[Member]) -> list[DetachedMount]:
        """Describe the mounts of a tree, parents first."""
        covered = len(members) > 1
        if covered and not is_tree_held(members[0].mnt_id):
            raise DetachedError(
                "it is in an anonymous tree of several mounts, and the fd of the tree, which keeps"
                " them together, is in no dumped process: close the files of the tree, or dump the"
                " process that has its fd too (or receive it from a socket)"
            )
        mounts = [self._describe_member(member, covered) for member in members]
        _refuse_mixture(mounts)
        return mounts

    def relative(self, link: bytes, mnt_id: int) -> bytes:
        """Turn the link of a file into one from the root of its mount.

        Args:
            link: from the root of the tree.
            mnt_id: the mount that the file is on.

        Raises:
            DetachedError: the mount is another one than the link says, or another one of the
                tree is in the way.
        """
        member = self._members.get(mnt_id)
        if member is None:
            return link
        if member.parent:
            inside = paths.below(link, b"/" + member.path)
            if inside is None:
                raise DetachedError("the tree of its mount was changed during the dump: try again")
            link = b"/" if inside == paths.ROOT else b"/" + inside
        for other in self._members.values():
            if other.parent == mnt_id and paths.below(link, b"/" + other.place) is not None:
                raise DetachedError(
                    f"mount {other.mnt_id} of the same anonymous tree covers it, so that it could"
                    " not be reached: unmount that, or close the file"
                )
        return link

    def note(self, fd: int, facts: FileStat) -> None:
        """Take note of a file on an anonymous mount.

        Args:
            fd: the file.
            facts: of it.

        Raises:
            DetachedError: it shows that the tree is larger than its record.
        """
        if stat.S_ISDIR(facts.mode) and facts.mnt_id in self._alone:
            members = _members_of(fd)
            _close(members)
            if len(members) > 1:
                raise DetachedError(
                    "it is in an anonymous tree of several mounts, and was found too late, in a"
                    " socket: receive it before the dump"
                )
            self._alone.remove(facts.mnt_id)

    def _describe_alone(self, fd: int, link: bytes, facts: FileStat) -> DetachedMount:
        """Describe a mount by a file that is no directory."""
        described = _view_file(fd, link)
        if described is not None:
            return self._describe(fd, link, facts, described)
        for other in held_files(facts.mnt_id):
            other_link = os.readlink(b"/proc/self/fd/%d" % other)
            if (described := _view_file(other, other_link)) is not None:
                return self._describe(other, other_link, kernel.fstat(other), described)
        return self._describe(fd, link, facts, None)

    def _describe_member(self, member: Member, covered: bool) -> DetachedMount:
        """Describe a mount by its root, through which a task reaches all of it.

        Args:
            member: the mount.
            covered: other mounts of the tree may lie over what is in it; a clone shows that.
        """
        try:
            root = trees.clone(member.fd) if covered else os.dup(member.fd)
        except OSError as error:
            raise DetachedError(f"there is no looking at its anonymous mount: {error}") from error
        try:
            mount = self._describe(root, b"/", kernel.fstat(member.fd), member.statmount)
            mount.is_held_whole(root)
        finally:
            os.close(root)
        mount.record.parent = member.parent
        mount.record.place = member.place
        return mount

    def _describe(
        self, fd: int, link: bytes, facts: FileStat, known: StatMount | None
    ) -> DetachedMount:
        mount = self._describe_mount(fd, link, facts, Kind(ANONYMOUS, known))
        mount.record.anonymous = 1
        if known and known.mnt_propagation == kernel.MS_PRIVATE:
            mount.record.private = 1
        return mount


def _view_file(fd: int, link: bytes) -> StatMount | None:
    """What the kernel tells of the mount of a file; None: nothing.

    The file is deleted, or the namespace that the mount was made in is gone.
    """
    try:
        found = trees.view(fd)
    except OSError:
        return None
    if not found:
        _refuse_unseen_tree(fd)
        return None
    top = found[0]  # of a clone with the file as its root
    inside = paths.from_link(link)
    if inside == paths.ROOT:
        return top
    if not top.mnt_root.endswith(b"/" + inside):
        raise DetachedError(
            "it is on a mount within an anonymous tree, of which no directory is to be found in"
            " any process: close it, or attach the tree with move_mount before the dump"
        )
    top.mnt_root = top.mnt_root[: -len(inside) - 1] or b"/"
    return top


def _find_tree(mnt_id: int) -> list[Member]:
    """Look in all processes for a directory of the tree that a mount is in."""
    seen = mountinfo.attached_ids()
    for directory in held_directories(seen):
        try:
            members = _members_of(directory)
        except DetachedError:
            continue  # of another kind
        if mnt_id in {member.mnt_id for member in members}:
            return members
        seen.update(member.mnt_id for member in members)
        _close(members)
    return []


def _members_of(directory: int) -> list[Member]:
    """All mounts of the tree that an open directory is in, parents first.

    None where the tree cannot be looked at, and yet is one mount: if its root is deleted, it was
    empty, and what was mounted below is gone (detach_mounts, fs/namespace.c).

    Raises:
        DetachedError: they are not known.
    """
    members: list[Member] = []
    try:
        top = trees.climb_tree(directory)
        try:
            found = trees.view(top)
            for known in found:
                path = paths.below(known.mnt_point, found[0].mnt_point)
                assert path is not None
                members.append(Member(_open_below(top, path), path, known))
                _find_parent(members)
        finally:
            os.close(top)
    except OSError as error:
        _close(members)
        if error.errno == errno.ENOENT and not members:
            return []
        raise DetachedError(f"there is no looking at its anonymous mount: {error}") from error
    if not members:
        _refuse_unseen_tree(directory)
    if len({member.mnt_id for member in members}) < len(members):
        _close(members)
        raise DetachedError(
            "it is in an anonymous tree with two mounts at one place, and the lower one is not to"
            " be reached: unmount the upper one"
        )
    return members


def _refuse_unseen_tree(fd: int) -> None:
    """Refuse a tree of several mounts of which the kernel clones none.

    Of a tree of one mount statmount(2) says ENOENT: it looks for a child of the root
    (grab_requested_root, fs/namespace.c).
    """
    try:
        statmount.by_fd(fd, statmount.STATMOUNT_MNT_BASIC)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return
    raise DetachedError(_NO_VIEW)


def _open_below(top: int, path: bytes) -> int:
    return kernel.openat2(top, path, kernel.O_PATH | kernel.O_NOFOLLOW, kernel.REACH_MOUNT)


def _find_parent(members: list[Member]) -> None:
    """Say of the last mount where it is attached: on the one with the longest path to it."""
    *others, last = members
    for other in others:
        inside: bytes | None = last.path
        if other.path != paths.ROOT:
            inside = paths.below(last.path, other.path)
        if inside is None or inside == paths.ROOT:
            continue
        if not last.place or len(inside) < len(last.place):
            last.parent, last.place = other.mnt_id, inside


def _refuse_mixture(mounts: list[DetachedMount]) -> None:
    """Refuse what cannot be put together.

    A task attaches what it has cloned, in the namespace that the root of the tree was cloned in.
    What is mounted or made anew may be attached to from any namespace.
    """
    top, *others = (mount.record for mount in mounts)
    inside = [mount for mount in others if is_in_namespace(mount)]
    if inside and top.origin in (BIND_SOURCE, SUPPLIED) and not is_in_namespace(top):
        assert top.bind_source is not None and inside[0].bind_source is not None
        raise DetachedError(
            "it is in an anonymous tree that is not of one place: its root is shown at"
            f" {quote(top.bind_source.mountpoint)} where criu runs, and another mount of it at"
            f" {quote(inside[0].bind_source.mountpoint)} in the dumped namespace: mount the former"
            " in the dumped namespace too"
        )


def _close(members: list[Member]) -> None:
    for member in members:
        os.close(member.fd)
