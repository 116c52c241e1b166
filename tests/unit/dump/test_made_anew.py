"""Deleted files that will be new ones: a second way to one of them is refused."""

from __future__ import annotations

import pytest

from criu_detached.dump.made_anew import MadeAnew
from criu_detached.errors import DetachedError
from criu_detached.records import File


def file(mnt_id: int, dev: int = 40, ino: int = 5) -> File:
    return File(mnt_id=mnt_id, dev=dev, ino=ino, path=b"dir/file")


@pytest.mark.parametrize("other", [file(300), file(301, dev=41), file(301, ino=6)])
def test_another_file(other: File) -> None:
    """The same one by its own mount, and others."""
    noted = MadeAnew()
    noted.add(file(300))
    noted.add(other)
    noted.check(set())  # nobody is dumped, so nobody has it


def test_second_mount() -> None:
    noted = MadeAnew()
    noted.add(file(300))
    with pytest.raises(DetachedError, match=r"dir/file is held on mount 300 and on mount 301"):
        noted.add(file(301))
