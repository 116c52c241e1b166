# SPDX-License-Identifier: GPL-2.0-only
"""How the detached mounts of one filesystem lie in each other, where the kernel does not tell.

Linux 7.0 tells the root of a mount. Before, one mount is held against another: a file of
the one is opened by its handle on the other, and the link of what is opened is its path from
the other's root, or "/" when it is not beneath that. Where the outermost roots lie, no task
can tell: one of them becomes the root of the filesystem that is made, several lie side by side.
"""

from __future__ import annotations

import os
import stat

from criu_detached import kernel, paths
from criu_detached.dump.describe.roots import start_of
from criu_detached.dump.observe.handles import link_on
from criu_detached.dump.open_file import OpenFile, handle_of
from criu_detached.kernel.fds import reopen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


class Layout:
    """Where the roots of mounts lie beneath the root of the filesystem to be made."""

    def __init__(self, fds: Iterable[int], anchors: Iterable[tuple[int, bytes]] = ()) -> None:
        """Lay mounts out.

        Args:
            fds: files on them, each closed when the next is asked for.
            anchors: roots of mounts whose paths in the filesystem are known, likewise, with
                those paths.
        """
        known: dict[int, _Held] = {}
        anchored: dict[int, bytes] = {}
        for fd, path in anchors:
            held = _Held(fd)
            known[held.mnt_id] = held
            anchored[held.mnt_id] = path
        self.anchored = bool(anchored)  # roots are what they are, and not laid out anew
        for fd in fds:
            held = _Held(fd)
            other = known.get(held.mnt_id)
            if other is not None and other.rank >= held.rank:
                held.close()
                continue
            known[held.mnt_id] = held
            if other is not None:
                other.close()
        families = _sort(list(known.values()))
        self._roots = _anchored_roots(families, anchored) if anchored else _roots(families)
        self._tops = [top for (top, _), *_ in families if top.mnt_id in self._roots]
        for held in known.values():
            if held not in self._tops:
                held.close()

    def close(self) -> None:
        """Close what is open."""
        for top in self._tops:
            top.close()

    def root_of(self, file: OpenFile) -> bytes | None:
        """Path of the root of a file's mount; None: it is not to be told."""
        mnt_id = file.stat.mnt_id
        if mnt_id not in self._roots:  # no process has it open: it is in flight
            held = _Held(file.fd)
            found = self._beneath_known(held)
            held.close()
            if found is None:
                return None
            self._roots[mnt_id] = found
        return self._roots[mnt_id]

    def _beneath_known(self, held: _Held) -> bytes | None:
        for top in self._tops:
            relation = _relate(held, top)
            if relation and relation[0]:
                return paths.join(self._roots[top.mnt_id], relation[0])
        return None


class _Held:
    """A mount, by one of the files on it."""

    def __init__(self, fd: int) -> None:
        file = OpenFile.of(fd)
        directory = file.is_directory
        name = file.readings[0 if directory else -1]
        self.mnt_id = file.stat.mnt_id
        self.path = name.path  # from the mount's root
        self.deleted = name.deleted
        # What has several names may be found by another one.
        self.has_one_path = directory or file.stat.nlink < 2
        # The root of a filesystem is a directory, and never deleted.
        self.may_be_top = name.path != paths.ROOT or (directory and not name.deleted)
        self.opens = directory or stat.S_ISREG(file.stat.mode)  # for open_by_handle_at(2)
        self.rank = (self.opens, self.has_one_path, not name.deleted, directory)
        self.fd = reopen(fd, kernel.O_PATH)

    def close(self) -> None:
        self.fd.close()


Family = list[tuple[_Held, bytes]]  # an outermost mount and those beneath it, with their paths


def _sort(mounts: list[_Held]) -> list[Family]:
    families: list[Family] = []
    for mount in mounts:
        _place(mount, families)
    return families


def _roots(families: list[Family]) -> dict[int, bytes]:
    if len(families) == 1 and families[0][0][0].may_be_top:
        return {mount.mnt_id: path for mount, path in families[0]}
    return {
        mount.mnt_id: paths.join(b"%d" % number, path)
        for number, family in enumerate(families, 1)
        for mount, path in family
    }


def _anchored_roots(families: list[Family], known: dict[int, bytes]) -> dict[int, bytes]:
    """The same, where the roots of some mounts are known; those of other families are not told."""
    roots = {}
    for family in families:
        bases = (
            start_of(known[mount.mnt_id], path) for mount, path in family if mount.mnt_id in known
        )
        base = next((base for base in bases if base is not None), None)
        if base is not None:
            roots.update({mount.mnt_id: paths.join(base, path) for mount, path in family})
    return roots


def _place(mount: _Held, families: list[Family]) -> None:
    """Find a mount's place among those that have one; it gets none where that is unsure."""
    own: Family = [(mount, paths.ROOT)]
    apart: list[Family] = []
    for family in families:
        relation = _relate(mount, family[0][0])
        if relation is None:
            return
        inner, outer = relation
        if inner:
            family.append((mount, inner))
            return
        if outer:
            own += [(held, paths.join(outer, path)) for held, path in family]
        else:
            apart.append(family)
    families[:] = [*apart, own]


def _relate(one: _Held, other: _Held) -> tuple[bytes, bytes] | None:
    """Paths of one mount's root beneath the other's, and the reverse; empty: it is not beneath.

    None: it is unsure.
    """
    if not (one.has_one_path and other.has_one_path):
        return None
    there = _seen_from(other, one)
    if there:
        return _compare(there, one.path)
    back = _seen_from(one, other)
    if back:
        relation = _compare(back, other.path)
        return relation[::-1] if relation else None
    return (b"", b"") if there == back == b"" else None


def _seen_from(mount: _Held, held: _Held) -> bytes | None:
    """Path of a file from the root of another mount; empty: it is not beneath; None: unsure."""
    if not mount.opens:
        return None
    handle = handle_of(held.fd)
    if handle is None:
        return None
    try:
        with reopen(mount.fd, os.O_RDONLY | os.O_NONBLOCK) as opened:
            link = link_on(opened, handle)
    except OSError:
        return None
    path = paths.from_link(link.removesuffix(paths.DELETED) if held.deleted else link)
    if path == paths.ROOT and not (mount.path == paths.ROOT and handle_of(mount.fd) == handle):
        return b""  # if it is that root, the other way round says so
    return path


def _compare(there: bytes, path: bytes) -> tuple[bytes, bytes] | None:
    """As _relate, of a file's path from the other's root and from its own."""
    if there == path:
        return paths.ROOT, b""
    if path == paths.ROOT:
        return there, b""
    if there == paths.ROOT:
        return b"", path
    if there.endswith(b"/" + path):
        return there[: -len(path) - 1], b""
    if path.endswith(b"/" + there):
        return b"", path[: -len(there) - 1]
    return None
