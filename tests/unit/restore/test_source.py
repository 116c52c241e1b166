"""What a bind source is compared by, in CRIU's process and in a task."""

from __future__ import annotations

import stat

import pytest

from criu_detached.restore.namespace_source import translated
from criu_detached.restore.source import type_name


@pytest.mark.parametrize("kind", [stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, 0])
def test_type_name(kind: int) -> None:
    assert type_name(kind | 0o644).startswith("a ")


@pytest.mark.parametrize(
    ("lines", "own", "seen"),
    [
        ([b"0 100000 65536"], [b"0 100000 65536"], [b"0 0 65536"]),
        ([b"0 100000 10", b"5 100050 1"], [b"0 100000 50", b"7 100050 9"], [b"0 0 10", b"5 7 1"]),
        ([b"0 1000 1", b"1 100000 2"], [b"0 100000 65536"], [b"1 0 2"]),
        ([b"0 100000 65537"], [b"0 100000 65536"], []),
        ([b"3 4 5"], [b"0 0 4294967295"], [b"3 4 5"]),
    ],
)
def test_id_map_in_a_user_namespace(
    lines: list[bytes], own: list[bytes], seen: list[bytes]
) -> None:
    """A line that the namespace does not have all ids of is not shown there."""
    assert translated(lines, own) == seen
