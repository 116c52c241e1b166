"""A dump without CRIU: what its parts are given."""

from __future__ import annotations

from pathlib import Path

from criu_detached.criu.fast_path import FastPath
from criu_detached.dump.context import DumpContext

from ..support import StandInCriu


class NoFastPath(FastPath):
    """It takes no file, and has taken none."""

    def __init__(self) -> None:
        pass

    def recorded_file_add(self, mnt_id: int, ino: int, dev: int, path: bytes) -> None:
        pass

    def recorded_file_find(self, mnt_id: int, ino: int) -> tuple[int, bytes] | None:
        return None


class StandInContext(DumpContext):
    """The context of a dump into a directory."""

    criu: StandInCriu

    def __init__(self, image_dir: int = -1) -> None:
        super().__init__(StandInCriu(image_dir, Path("/")), NoFastPath())
