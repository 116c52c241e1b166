"""Data is copied between open files, and holes are told from data."""

from __future__ import annotations

import os
from pathlib import Path

from criu_detached.images import copying

from .. import support


def test_position_of_the_file_is_left(directory: int, tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"content")
    with support.opened(tmp_path / "old") as fd:
        os.lseek(fd, 3, os.SEEK_SET)
        with support.opened(tmp_path / "new", os.O_RDWR | os.O_CREAT) as new:
            assert copying.copy_data(fd, 0, new, 0, 100) == 7
        assert os.lseek(fd, 0, os.SEEK_CUR) == 3
