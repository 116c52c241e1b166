"""Attributes and id-maps, as the kernel takes them."""

from __future__ import annotations

import pytest

from criu_detached.errors import DetachedError
from criu_detached.filesystems.attributes import id_map_text


@pytest.mark.parametrize(
    ("lines", "text"),
    [([], b""), ([b"0 1000 1"], b"0 1000 1\n"), ([b"0 1000 1", b"1 5 9"], b"0 1000 1\n1 5 9\n")],
)
def test_id_map_text(lines: list[bytes], text: bytes) -> None:
    assert id_map_text(lines) == text


@pytest.mark.parametrize(
    "line",
    [b"", b"0 1", b"0 1 2 3", b"a 1 2", b"-1 1 2", b"0 0 4294967296", b"0 0x1 1", "0 1 ²".encode()],
)
def test_invalid_id_map(line: bytes) -> None:
    with pytest.raises(DetachedError, match="id-map line"):
        id_map_text([b"0 1 2", line])
