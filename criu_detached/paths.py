# SPDX-License-Identifier: GPL-2.0-only
"""Paths within a mount, as records hold them: relative, "." for the root itself."""

from __future__ import annotations

from criu_detached import kernel
from criu_detached.kernel import FileStat
from criu_detached.kernel.fds import Fd

ROOT = b"."


def from_link(link: bytes) -> bytes:
    """Turn the link of a file on a detached mount, "/a/b" or "/", into a record's path."""
    return link.strip(b"/") or ROOT


class Name:
    """A reading of a file's link: its path from the mount's root, and whether that is gone."""

    __slots__ = ("deleted", "path")

    def __init__(self, path: bytes, deleted: bool) -> None:
        self.path = path
        self.deleted = deleted


DELETED = b" (deleted)"


def readings(link: bytes, file: FileStat) -> list[Name]:
    """Return what a link may mean: a name can end in " (deleted)" itself (d_path, fs/d_path.c).

    Args:
        link: of a file on a detached mount.
        file: what statx(2) says of it.

    Returns:
        One or two readings, the literal one first.
    """
    found = []
    # Some filesystems keep the links of deleted directories: nlink says nothing of those.
    if file.nlink or not link.endswith(DELETED):
        found.append(Name(from_link(link), False))
    if link.endswith(DELETED):
        found.append(Name(from_link(link.removesuffix(DELETED)), True))
    return found


def split(path: bytes) -> tuple[bytes, bytes]:
    """Return directory and last component of a record path that is not the root."""
    directory, _, name = path.rpartition(b"/")
    return directory or ROOT, name


def is_invalid(path: bytes) -> bool:
    """Tell a path that could leave its mount, or is none; the root's aside."""
    return b"\0" in path or bool({b"", b".", b".."} & set(path.split(b"/")))


def join(one: bytes, other: bytes) -> bytes:
    """Append one record path to another."""
    if one == ROOT:
        return other
    return one if other == ROOT else one + b"/" + other


def directory_of_socket(name: bytes, start: bytes) -> bytes:
    """Return the path of the directory that a bound socket's file is in.

    Args:
        name: as the socket was bound to it.
        start: where a relative name starts; of an absolute one the directory itself.
    """
    if name.startswith(b"/"):
        return start
    return join(start, name.removeprefix(b"./").rpartition(b"/")[0] or ROOT)


def below(path: bytes, root: bytes) -> bytes | None:
    """Return an absolute path relative to an absolute root; None when it lies elsewhere."""
    prefix = root.rstrip(b"/") + b"/"
    if path == root:
        return ROOT
    return path[len(prefix) :] if path.startswith(prefix) else None


def stat_at(root: int, path: bytes) -> FileStat:
    """Call statx(2) on a path beneath a root that may be a file itself; raises OSError."""
    return kernel.fstat(root) if path == ROOT else kernel.stat_beneath(root, path)


def open_at(root: int, path: bytes) -> Fd:
    """Open a path beneath a root that may be a file itself.

    Args:
        root: fd of the root.
        path: as a record has it.

    Returns:
        An O_PATH fd.

    Raises:
        OSError: it is not there, or leads through a symlink or to another mount.
    """
    if path == ROOT:
        return kernel.open_tree(root, b"", kernel.AT_EMPTY_PATH | kernel.OPEN_TREE_CLOEXEC)
    fd, _ = kernel.open_beneath(root, path, kernel.O_PATH | kernel.O_NOFOLLOW)
    return fd


def open_from_root(root: str, path: bytes) -> Fd:
    """Open a path as a process with another root would: symlinks do not lead out of it.

    Args:
        root: path of that directory, as ``/proc/PID/root``.
        path: an absolute path there.

    Returns:
        An O_PATH fd.

    Raises:
        OSError: it cannot be reached.
    """
    with Fd.open(root, kernel.O_PATH) as top:
        return kernel.openat2(top, path, kernel.O_PATH, kernel.RESOLVE_IN_ROOT)


def open_mountpoint(namespace_root: int, mountpoint: bytes) -> Fd:
    """Open a mountpoint, reached from the root of its namespace.

    Args:
        namespace_root: fd of that root.
        mountpoint: an absolute path there.

    Returns:
        An O_PATH fd.

    Raises:
        OSError: it cannot be reached without following symlinks.
    """
    path = from_link(mountpoint)
    return kernel.openat2(
        namespace_root, path, kernel.O_PATH | kernel.O_NOFOLLOW, kernel.REACH_MOUNT
    )
