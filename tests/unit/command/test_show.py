# SPDX-License-Identifier: GPL-2.0-only
"""The table of the mounts in an image directory; images are input."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from criu_detached import settings
from criu_detached.command import cli
from criu_detached.command.show import show
from criu_detached.errors import DetachedError
from criu_detached.images.record_writer import RecordWriter
from criu_detached.images.recordfile import NAME
from criu_detached.images.records import (
    BIND_SOURCE,
    FORMAT,
    RECREATED,
    REMOUNT,
    SUPPLIED,
    BindSource,
    File,
    Filesystem,
    Ghost,
    Handle,
    Header,
    Mount,
    Superblock,
)


@pytest.fixture
def writer(directory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RecordWriter:
    """Images, and no settings of the machine that the test runs on."""
    monkeypatch.setattr(settings, "SYSTEM_FILE", str(tmp_path / "system.conf"))
    return RecordWriter(directory, Header(format=FORMAT))


def mount(mnt_id: int, origin: int, **changes: object) -> Mount:
    """A mount that a dump could record."""
    record = Mount(
        mnt_id=mnt_id,
        origin=origin,
        root=b"/tree",
        root_type=stat.S_IFDIR,
        superblock=Superblock(fs_type=b"tmpfs"),
        bind_source=BindSource(mountpoint=b"/srv", path=b"tree"),
    )
    for name, value in changes.items():
        setattr(record, name, value)
    return record


def rows(images: Path) -> list[list[str]]:
    """The cells of the table, without its head."""
    head, *lines = show(images)
    starts = [head.index(name) for name in ("ID", "TYPE", "FILES", "ROOT", "COMES FROM")]
    ends = [*starts[1:], None]
    return [[line[a:b].strip() for a, b in zip(starts, ends, strict=True)] for line in lines]


def test_origins(writer: RecordWriter, tmp_path: Path) -> None:
    inside = BindSource(mountpoint=b"/mnt", path=b".", in_namespace=1)
    writer.filesystem(Filesystem(id=1, source=b"/dev/loop 0"))
    writer.filesystem(Filesystem(id=2))
    writer.mount(mount(40, SUPPLIED, root=b"", superblock=Superblock(fs_type=b"fuse")))
    writer.mount(mount(5, BIND_SOURCE))
    writer.mount(mount(6, BIND_SOURCE, bind_source=inside, root_type=stat.S_IFREG))
    writer.mount(mount(7, REMOUNT, filesystem=1))
    writer.mount(mount(8, RECREATED, filesystem=2))
    writer.mount(mount(9, 77))
    handle = Handle(type=1, bytes=b"handle")
    for ino in (1, 2):
        writer.file(File(mnt_id=5, ino=ino, path=b"file"))
    writer.ghost(Ghost(file=File(mnt_id=5, ino=3, path=b"gone", handle=handle)))
    expected = [
        ["5", "tmpfs", "3", "/tree", "bind source: /srv/tree"],
        ["6", "tmpfs", "0", "/tree (a file)", "bind source: /mnt in the dumped mount namespace"],
        ["7", "tmpfs", "0", "/tree", r"mounted again: /dev/loop\0400"],
        ["8", "tmpfs", "0", "/tree", "made anew, with its contents"],
        ["9", "tmpfs", "0", "/tree", "unknown (origin 77)"],
        ["40", "fuse", "0", "?", 'to be supplied: "source 40 PATH" in criu-detached.conf'],
    ]
    assert rows(tmp_path) == expected
    (tmp_path / settings.IMAGES_FILE).write_text("source 40 /here\nmap /srv /there\n")
    found = rows(tmp_path)
    assert found[0][4] == "supplied: /there/tree (criu-detached.conf)"
    assert found[1:5] == expected[1:5]
    assert found[5][4] == "supplied: /here (criu-detached.conf)"


def test_hostile_names(writer: RecordWriter, tmp_path: Path) -> None:
    """One line of printable characters for each mount."""
    evil = b"/a\n5  tmpfs\x1b[31m\xff"
    source = BindSource(mountpoint=evil, path=b"..")
    superblock = Superblock(fs_type=b"x y\n")
    writer.mount(mount(5, BIND_SOURCE, root=evil, bind_source=source, superblock=superblock))
    writer.mount(mount(6, BIND_SOURCE, bind_source=None, superblock=None))
    writer.mount(mount(7, REMOUNT, filesystem=9))
    lines = show(tmp_path)
    assert len(lines) == 4
    assert all(line.isprintable() and line.isascii() for line in lines)


def test_command(writer: RecordWriter, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer.mount(mount(5, BIND_SOURCE))
    assert cli.main(["show", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("5 ")
    (tmp_path / NAME).write_bytes(b"nonsense")
    assert cli.main(["show", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"criu-detached: {NAME} is damaged")


def test_no_images(tmp_path: Path) -> None:
    with pytest.raises(DetachedError, match="missing"):
        show(tmp_path)
    with pytest.raises(DetachedError, match=r"can't open .*absent.*No such file"):
        show(tmp_path / "absent\n")


def test_files_that_do_not_fit(writer: RecordWriter, tmp_path: Path) -> None:
    writer.file(File(mnt_id=5, ino=1, path=b"file"))
    with pytest.raises(DetachedError, match="damaged"):
        show(tmp_path)
