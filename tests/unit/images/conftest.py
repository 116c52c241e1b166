"""What several tests of the record file need."""

from __future__ import annotations

from pathlib import Path

import pytest

from criu_detached.images.recordfile import NAME

from .samples import write_all


@pytest.fixture
def written(directory: int, tmp_path: Path) -> bytes:
    """The bytes of such a file, which is in the directory."""
    write_all(directory)
    return (tmp_path / NAME).read_bytes()
