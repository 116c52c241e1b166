"""Which files are opened, by whomever and through whatever mount."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable
from pathlib import Path

IN_OPEN = 0x20


class Opened:
    """Which files in a set of directories anybody opens, by whatever mount (inotify(7))."""

    def __init__(self, directories: Iterable[Path]) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self._watched: dict[int, Path] = {}
        for directory in directories:
            watch = libc.inotify_add_watch(self._fd, os.fsencode(directory), IN_OPEN)
            assert watch > 0, f"{directory}: {os.strerror(ctypes.get_errno())}"
            self._watched[watch] = directory

    def take(self) -> set[Path]:
        """The files that were opened since the last time."""
        found = set()
        try:
            while data := os.read(self._fd, 1 << 16):
                at = 0
                while at < len(data):
                    watch, _, _, size = struct.unpack_from("=iIII", data, at)
                    name = data[at + 16 : at + 16 + size].rstrip(b"\0")
                    found.add(self._watched[watch] / os.fsdecode(name))
                    at += 16 + size
        except BlockingIOError:
            pass
        return {path for path in found if path.name and not path.is_dir()}

    def close(self) -> None:
        """Look no more."""
        os.close(self._fd)
