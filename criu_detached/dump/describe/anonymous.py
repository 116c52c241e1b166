# SPDX-License-Identifier: GPL-2.0-only
"""Anonymous mounts at dump: from a file on one to all mounts of its tree.

A tree that open_tree or fsmount made has a mount at its root and perhaps others below.
Whoever holds a directory of it reaches all of them, so all are recorded. Who holds other
files alone reaches those alone, and the mount of each is recorded by itself.
"""

from __future__ import annotations

import errno
import os
from itertools import chain

from criu_detached import kernel, paths
from criu_detached.dump.describe.new_mount import NewMount, Position
from criu_detached.dump.observe import trees
from criu_detached.dump.observe.processes import (
    held_directories,
    held_files,
    is_in_tree_of_others,
    is_tree_held,
)
from criu_detached.dump.open_file import OpenFile
from criu_detached.errors import DetachedError, quote
from criu_detached.kernel import statmount
from criu_detached.kernel.fds import Fd, Fds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.dump.describe.mount import DetachedMount
    from criu_detached.dump.observe.machine import Machine
    from criu_detached.kernel.statmount import StatMount

_NO_VIEW = (
    "it is in an anonymous tree (open_tree) of several mounts whose mount namespace is gone, and"
    " the kernel does not tell which mounts those are: close it, or attach the tree with"
    " move_mount before the dump"
)


class Member(Position):
    """How a mount lies in an anonymous tree that is known."""

    anonymous = True

    def __init__(self, mnt_id: int, path: bytes) -> None:
        """Take what is known of the mount.

        Args:
            mnt_id: its 32-bit id.
            path: of its root, from the root of the tree.
        """
        self.mnt_id = mnt_id
        self.path = path
        self.children: list[Member] = []

    def attach_to(self, others: list[Member]) -> None:
        """Find the mount that it is on: the one with the longest path to it.

        Args:
            others: those above it, among others.
        """
        on: Member | None = None
        for other in others:
            inside: bytes | None = self.path
            if other.path != paths.ROOT:
                inside = paths.below(self.path, other.path)
            if inside is None or inside == paths.ROOT:
                continue
            if on is None or len(inside) < len(self.place):
                on, self.place = other, inside
        if on is not None:
            self.parent = on.mnt_id
            on.children.append(self)

    def rooted(self, file: OpenFile) -> OpenFile:
        """Take the path of the mount from the link, which is from the root of the tree.

        Raises:
            DetachedError: the mount is another one than the link says, or another one of the
                tree is in the way.
        """
        link = file.link
        if self.parent:
            inside = paths.below(link, b"/" + self.path)
            if inside is None:
                raise DetachedError("the tree of its mount was changed during the dump: try again")
            link = b"/" if inside == paths.ROOT else b"/" + inside
        for child in self.children:
            if paths.below(link, b"/" + child.place) is not None:
                raise DetachedError(
                    f"mount {child.mnt_id} of the same anonymous tree covers it, so that it could"
                    " not be reached: unmount that, or close the file"
                )
        return file.seen_as(link)


class Unseen(Position):
    """How a mount lies in a tree of which no directory is known: it is recorded by itself."""

    anonymous = True

    def __init__(self) -> None:
        self._is_whole = False  # it is all of the tree

    def note(self, file: OpenFile) -> None:
        """See by a directory whether the tree is larger than its record."""
        if self._is_whole or not file.is_directory:
            return
        with Tree(file.fd) as tree:
            if len(tree.members) > 1:
                raise DetachedError(
                    "it is in an anonymous tree of several mounts, and was found too late, in a"
                    " socket: receive it before the dump"
                )
        self._is_whole = True


class Tree:
    """The mounts of the tree that a directory is in, as long as it is open."""

    def __init__(self, directory: int) -> None:
        """Look at them.

        Args:
            directory: an open directory on one of them.

        Raises:
            DetachedError: they are not known.
        """
        self._fds = Fds()
        self._roots: list[tuple[OpenFile, StatMount]] = []  # of the members, in that order
        # Parents first. None where the tree cannot be looked at, and yet is one mount: if its root
        # is deleted, it was empty, and what was mounted below is gone (detach_mounts,
        # fs/namespace.c).
        self.members: list[Member] = []
        try:
            self._look(directory)
        except DetachedError:
            self.close()
            raise

    def __enter__(self) -> Tree:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the roots of the mounts."""
        self._fds.close()

    def _look(self, directory: int) -> None:
        try:
            with Fd(trees.climb_tree(directory)) as top:
                self._view(top)
        except OSError as error:
            if error.errno == errno.ENOENT and not self.members:
                return
            raise _no_look(error) from error
        if not self.members:
            _refuse_unseen_tree(directory)
        if len({member.mnt_id for member in self.members}) < len(self.members):
            raise DetachedError(
                "it is in an anonymous tree with two mounts at one place, and the lower one is not"
                " to be reached: unmount the upper one"
            )

    def _view(self, top: int) -> None:
        found = trees.view(top)
        for known in found:
            path = paths.below(known.mnt_point, found[0].mnt_point)
            assert path is not None
            flags = kernel.O_PATH | kernel.O_NOFOLLOW
            fd = self._fds.add(kernel.openat2(top, path, flags, kernel.REACH_MOUNT))
            root = OpenFile(fd, kernel.fstat(fd), b"/")
            member = Member(root.stat.mnt_id, path)
            member.attach_to(self.members)
            self._roots.append((root, known))
            self.members.append(member)

    def new_mounts(self, machine: Machine) -> list[NewMount]:
        """Return the mounts, parents first, each by its root: a task reaches all of it.

        Args:
            machine: what is around the dump.

        Raises:
            DetachedError: they would not be together after the restore.
        """
        covered = len(self.members) > 1  # what is in one others may cover; a clone shows that
        if covered and not is_tree_held(machine, self.members[0].mnt_id):
            raise _held_by_others()
        try:
            return [
                NewMount(self._uncovered(root) if covered else root, known, member)
                for (root, known), member in zip(self._roots, self.members, strict=True)
            ]
        except OSError as error:
            raise _no_look(error) from error

    def _uncovered(self, root: OpenFile) -> OpenFile:
        return OpenFile(self._fds.add(trees.clone(root.fd)), root.stat, root.link)


def find_tree(file: OpenFile, machine: Machine) -> Tree | None:
    """Look for the tree that an anonymous mount is in.

    Args:
        file: on the mount; if it is no directory, all processes are searched for one.
        machine: what is around the dump.

    Returns:
        The tree, for the caller to close; None: no directory of it is known, or its root is
        deleted.

    Raises:
        DetachedError: its mounts are not known.
    """
    if file.is_directory:
        tree = Tree(file.fd)
        if tree.members:
            return tree
        tree.close()
        return None
    seen: set[int] = set()
    for directory in held_directories(machine, seen):
        try:
            tree = Tree(directory)
        except DetachedError:
            continue  # of another kind
        ids = {member.mnt_id for member in tree.members}
        if file.stat.mnt_id in ids:
            return tree
        seen.update(ids)
        tree.close()
    if is_in_tree_of_others(machine, file.stat.mnt_id):
        raise _held_by_others()
    return None


def mount_by_itself(file: OpenFile, fds: Fds, machine: Machine) -> NewMount:
    """Return a mount of a tree of which no directory is known.

    Args:
        file: on the mount.
        fds: takes the fd of another file on it, if that shows more.
        machine: what is around the dump.

    Raises:
        DetachedError: the mount cannot be told from others of its tree.
    """
    for held in chain([file.fd], held_files(machine, file.stat.mnt_id)):
        one = file if held == file.fd else OpenFile.of(held)
        known = _view_file(one)
        if known is not None:
            if one is not file:
                one = OpenFile(fds.add(os.dup(held)), one.stat, one.link)
            return NewMount(one, known, Unseen())
    return NewMount(file, None, Unseen())


def _view_file(file: OpenFile) -> StatMount | None:
    """What the kernel tells of the mount of a file; None: nothing.

    The file is deleted, or the namespace that the mount was made in is gone.
    """
    try:
        found = trees.view(file.fd)
    except OSError:
        return None
    if not found:
        _refuse_unseen_tree(file.fd)
        return None
    top = found[0]  # of a clone with the file as its root
    inside = paths.from_link(file.link)
    if inside == paths.ROOT:
        return top
    if not top.mnt_root.endswith(b"/" + inside):
        raise DetachedError(
            "it is on a mount within an anonymous tree, of which no directory is to be found in"
            " any process: close it, or attach the tree with move_mount before the dump"
        )
    top.mnt_root = top.mnt_root[: -len(inside) - 1] or b"/"
    return top


def _held_by_others() -> DetachedError:
    return DetachedError(
        "it is in an anonymous tree of several mounts, and the fd of the tree, which keeps them"
        " together, is in no dumped process: close the files of the tree, or dump the process that"
        " has its fd too (or receive it from a socket)"
    )


def _no_look(error: OSError) -> DetachedError:
    return DetachedError(f"there is no looking at its anonymous mount: {error}")


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


def refuse_mixture(mounts: list[DetachedMount]) -> None:
    """Refuse what cannot be put together.

    A task attaches what it has cloned, in the namespace that the root of the tree was cloned in.
    What is remounted or recreated may be attached to from any namespace.

    Args:
        mounts: of a tree, its root first.

    Raises:
        DetachedError: they cannot.
    """
    top, *others = mounts
    inside = [mount for mount in others if mount.in_namespace]
    if inside and top.is_clone and not top.in_namespace:
        raise DetachedError(
            "it is in an anonymous tree that is not of one place: its root is shown at"
            f" {quote(top.bind_source.mountpoint)} where criu runs, and another mount of it at"
            f" {quote(inside[0].bind_source.mountpoint)} in the dumped namespace: mount the former"
            " in the dumped namespace too"
        )
