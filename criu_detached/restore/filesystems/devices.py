# SPDX-License-Identifier: GPL-2.0-only
"""The block device that a recorded filesystem lies on by now, found at restore.

Only in CRIU's own process.
"""

from __future__ import annotations

import os
import stat

from criu_detached.errors import DetachedError, quote, why
from criu_detached.filesystems import devices, loops, sysfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.images.records import BlockDevice, Loop
    from criu_detached.kernel.fds import Fd


class Found:
    """A device that carries a filesystem; it is held open, and a new loop device by that alone."""

    __slots__ = ("claimed", "fd", "path")

    def __init__(self, path: bytes, fd: Fd) -> None:
        self.path = path
        self.fd = fd
        self.claimed = False  # something has it mounted already

    def close(self) -> None:
        """Let go of it."""
        self.fd.close()


def find_device(wanted: BlockDevice) -> Found:
    """Find the device that carries a filesystem by now, or set its loop device up again.

    Args:
        wanted: its record.

    Returns:
        It, opened; the caller closes it.

    Raises:
        DetachedError: there is none, or there are several.
    """
    if not wanted.path.startswith(b"/dev/") or b"\0" in wanted.path:
        raise DetachedError(f"a filesystem has the invalid device {quote(wanted.path)}")
    return _Search(wanted).run()


class _Search:
    """The search for one device, with the reasons why others are not it."""

    def __init__(self, wanted: BlockDevice) -> None:
        self.wanted = wanted
        self.notes: list[str] = []

    def run(self) -> Found:
        """Look where it was, and then everywhere."""
        wanted = self.wanted
        if wanted.loop is None:
            found = self._open(wanted.path, noted=True)
        else:
            found = self._over_file(wanted.loop)
        found = found or self._anywhere()
        if found is not None:
            return found
        notes = "".join(f"; {note}" for note in self.notes)
        raise DetachedError(
            f"no block device carries the filesystem {devices.describe(wanted)} that was on"
            f" {quote(wanted.path)}: connect it again, or supply its mounts{notes}"
        )

    def _open(self, path: bytes, noted: bool = False) -> Found | None:
        """Open a device if it is the one. What is no block device is not touched.

        Args:
            path: its node.
            noted: note why it is not the one.
        """
        try:
            if not stat.S_ISBLK(os.stat(path).st_mode):
                return None
            fd = devices.open_device(path)
        except OSError as error:
            refusal = f"{quote(path)}: {why(error)}"
        else:
            with fd:
                refusal = self._refusal(fd, path)
                if not refusal:
                    return Found(path, fd.release())
        if noted:
            self.notes.append(refusal)
        return None

    def _refusal(self, fd: int, path: bytes) -> str:
        """Why a device is not the one; empty: it is."""
        try:
            found = devices.identify(fd, path)
        except DetachedError as error:
            return str(error)
        if devices.is_same(self.wanted, found):
            return ""
        return f"{quote(path)} carries {devices.describe(found)}"

    def _over_file(self, loop: Loop) -> Found | None:
        """Find a loop device over the same file, or make one.

        Never a second one for a filesystem that is mounted from a first: both would write.
        """
        there = list(filter(None, map(self._open, loops.loops_over(loop.file))))
        if not there:
            return self._new_loop(loop)
        there.sort(key=lambda one: (not devices.is_claimed(one.path), one.path != self.wanted.path))
        for other in there[1:]:
            other.close()
        return there[0]

    def _new_loop(self, loop: Loop) -> Found | None:
        try:
            file = loops.open_file(loop)
        except OSError as error:
            self.notes.append(f"its backing file {quote(loop.file)}: {why(error)}")
            return None
        with file:
            if not loop.partition and not self._is_image(file, loop):
                return None
            fd, name = loops.attach(loop, file)
        with fd:  # if it is not the one, the loop device goes with it
            return self._open(loops.node_of(name, loop), noted=True)

    def _is_image(self, file: int, loop: Loop) -> bool:
        """Tell whether a backing file holds the filesystem."""
        try:
            found = devices.identify(file, loop.file, loop.offset)
        except DetachedError as error:
            self.notes.append(f"its backing file {error}")
            return False
        found.size = self.wanted.size  # that of a loop device may end before its file
        same = devices.is_same(self.wanted, found)
        if not same:
            what = devices.describe(found)
            self.notes.append(f"its backing file {quote(loop.file)} holds {what}")
        return same

    def _anywhere(self) -> Found | None:
        """Look at every device, if what is known of the one would tell it from all others."""
        if not self.wanted.uuid and not self.wanted.checksum:
            return None
        found: list[Found] = []
        for name in sysfs.block_devices():
            if sysfs.attribute(name, b"size") == b"0" or sysfs.is_part_of_another(name):
                continue
            one = self._open(sysfs.node_of(name))
            if one:
                found.append(one)
        return self._only_one(found)

    def _only_one(self, found: list[Found]) -> Found | None:
        if len(found) < 2:
            return found[0] if found else None
        for one in found:
            one.close()
        paths = " and ".join(quote(one.path) for one in found)
        raise DetachedError(
            f"{paths} all carry the filesystem {devices.describe(self.wanted)} that was on"
            f" {quote(self.wanted.path)}: which one is it? disconnect the others"
        )
