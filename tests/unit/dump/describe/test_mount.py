"""What is left open when a detached mount is described, or cannot be."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from criu_detached import kernel
from criu_detached.dump.describe import mount
from criu_detached.dump.describe.mount import DetachedMount, describe_mount
from criu_detached.dump.describe.sources import Source
from criu_detached.dump.observe.classify import Classifier
from criu_detached.errors import DetachedError
from criu_detached.kernel import mountinfo

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


def describe_held(fd: int, tmp_path: Path) -> DetachedMount:
    """Describe its mount, with the attached mount of that filesystem as the one candidate."""

    def candidates(*_: object) -> Iterator[Source]:
        mountpoint = support.mount_of(tmp_path).mountpoint
        root = os.open(mountpoint, kernel.O_PATH)
        yield Source(mountinfo.info_of(kernel.fstat(root).mnt_id), False, root)

    facts = kernel.fstat(fd)
    kind = Classifier().classify(fd, facts.mnt_id)
    return describe_mount(fd, b"/file", facts, kind, candidates)


def test_described(held: int, tmp_path: Path) -> None:
    """The mount keeps its root and its source open, and nothing else is."""
    before = len(support.open_fds())
    mount = describe_held(held, tmp_path)
    assert kernel.fstat(mount.root).ino == (tmp_path / "source").stat().st_ino
    assert len(support.open_fds()) == before + 2
    os.close(mount.root)
    os.close(mount.source)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("_record", DetachedError("no record")),
        ("_record", OSError(24, "no record")),
        ("_rehearse", OSError(22, "no clone")),
    ],
)
def test_nothing_stays_open(
    held: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, error: Exception
) -> None:
    """A dump may go on: with "external all" the mount is to be supplied then."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(mount, name, fail)
    before = support.open_fds()
    with pytest.raises((DetachedError, OSError), match=str(error.args[-1])):
        describe_held(held, tmp_path)
    assert support.open_fds() == before
