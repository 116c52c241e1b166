"""What is left open when a detached mount is described, or cannot be."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from criu_detached import kernel
from criu_detached.dump.describe import search
from criu_detached.dump.describe.new_mount import NewMount
from criu_detached.dump.describe.search import describe_mount
from criu_detached.dump.describe.source_mount import SourceMount
from criu_detached.dump.describe.sources import Source, Sources
from criu_detached.dump.observe.classify import Classifier
from criu_detached.dump.open_file import OpenFile
from criu_detached.errors import DetachedError
from criu_detached.kernel import mountinfo
from criu_detached.kernel.fds import Fd

from ... import support


@pytest.fixture
def held(tmp_path: Path) -> Iterator[int]:
    """A file on a detached mount."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_text("content")
    (tmp_path / "mnt").mkdir()
    with support.detached(tmp_path / "mnt", tmp_path / "source") as root:
        fd = os.open("file", os.O_RDONLY, dir_fd=root)
        yield fd
        os.close(fd)


class OneSource(Sources):
    """The attached mount that a path is on."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def candidates(self, *_: object) -> Iterator[Source]:
        root = Fd(os.open(support.mount_of(self._path).mountpoint, kernel.O_PATH))
        yield Source(mountinfo.info_of(kernel.fstat(root).mnt_id), root)


def describe_held(fd: int, tmp_path: Path) -> SourceMount:
    """Describe its mount, with the attached mount of that filesystem as the one candidate."""
    file = OpenFile.of(fd).seen_as(b"/file")
    known = Classifier().classify(file).statmount
    return describe_mount(NewMount(file, known), OneSource(tmp_path))


def test_described(held: int, tmp_path: Path) -> None:
    """The mount keeps its root and its source open, and nothing else is."""
    before = len(support.open_fds())
    mount = describe_held(held, tmp_path)
    assert mount.root is not None
    assert kernel.fstat(mount.root).ino == (tmp_path / "source").stat().st_ino
    assert len(support.open_fds()) == before + 2
    mount.root.close()
    mount.source.close()


@pytest.mark.parametrize(
    ("place", "name", "error"),
    [
        (search, "superblock_of", DetachedError("no record")),
        (search, "superblock_of", OSError(24, "no record")),
        (search, "dry_run", OSError(22, "no clone")),
    ],
)
def test_nothing_stays_open(
    held: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: ModuleType,
    name: str,
    error: Exception,
) -> None:
    """A dump may go on: with "external all" the mount is to be supplied then."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(place, name, fail)
    before = support.open_fds()
    with pytest.raises((DetachedError, OSError), match=str(error.args[-1])):
        describe_held(held, tmp_path)
    assert support.open_fds() == before
