"""What several tests of the command need."""

from __future__ import annotations

from pathlib import Path

import pytest

from criu_detached.command import built


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    """A directory with everything that a built plugin has, and its path built in."""
    for part in built.PARTS:
        path = tmp_path / part.replace("*", "cpython-3")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return tmp_path
