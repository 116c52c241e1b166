# SPDX-License-Identifier: GPL-2.0-only
"""What the settings make of the records before a restore, or a refusal in one line."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from criu_detached import settings
from criu_detached.criu import log
from criu_detached.errors import DetachedError
from criu_detached.images.record_reader import Records, read_records
from criu_detached.images.record_writer import RecordWriter
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
    Inode,
    Mount,
    Superblock,
)
from criu_detached.restore.user_provided import UserProvided, find_provided

from ..support import KnownFiles, StandInHost


def mount(mnt_id: int, origin: int, path: bytes = b".", **changes: object) -> Mount:
    """A mount that a dump could record."""
    record = Mount(
        mnt_id=mnt_id,
        origin=origin,
        root=b"/",
        root_type=stat.S_IFDIR,
        superblock=Superblock(fs_type=b"fuse", magic=0x65735546),
        bind_source=BindSource(mountpoint=b"/srv", path=path),
    )
    for name, value in changes.items():
        setattr(record, name, value)
    return record


class Ground:
    """Images, and CRIU."""

    def __init__(self, images: int, path: Path, known_files: KnownFiles) -> None:
        self.host = StandInHost(images, known_files)
        self.path = path
        self.writer = RecordWriter(images, Header(format=FORMAT))
        self.records: Records | None = None

    def settings(self, text: str) -> None:
        """Write them beside the images."""
        (self.path / settings.IMAGES_FILE).write_text(text)

    def find(self) -> dict[int, UserProvided]:
        """Read the records, and the settings for them."""
        criu = self.host.criu
        self.records = read_records(criu.image_dir())
        options = settings.Options(criu.image_dir(), criu.plugin_options())
        return find_provided(self.records, options, criu)

    def refused(self, *parts: str) -> None:
        """One line says so."""
        with pytest.raises(DetachedError) as error:
            self.find()
        text = str(error.value)
        assert text.isprintable()
        for part in parts:
            assert part in text


@pytest.fixture
def ground(
    directory: int, tmp_path: Path, known_files: KnownFiles, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Ground]:
    """An image directory, and no settings of the machine that the test runs on."""
    monkeypatch.setattr(settings, "SYSTEM_FILE", str(tmp_path / "system.conf"))
    monkeypatch.setattr("criu_detached.restore.user_provided.SYSTEM_FILE", settings.SYSTEM_FILE)
    made = Ground(directory, tmp_path, known_files)
    log.set_writer(made.host.criu.log)
    yield made
    log.set_writer(log._to_stderr)


def test_nothing_is_provided(ground: Ground) -> None:
    ground.writer.mount(mount(5, BIND_SOURCE))
    assert ground.find() == {}
    assert ground.records is not None
    assert ground.records.mounts[5].origin == BIND_SOURCE


@pytest.mark.parametrize("origin", [BIND_SOURCE, REMOUNT, RECREATED, SUPPLIED])
def test_provided(ground: Ground, origin: int) -> None:
    """Whatever the images say; a filesystem that has no other mount is not needed any more."""
    if origin in (REMOUNT, RECREATED):
        for number in (1, 2):
            ground.writer.filesystem(Filesystem(id=number, superblock=Superblock(fs_type=b"ext4")))
        ground.writer.mount(mount(4, origin, filesystem=2))
        ground.writer.mount(mount(6, origin, filesystem=1))
    ground.writer.mount(mount(5, origin, filesystem=1 if origin in (REMOUNT, RECREATED) else 0))
    ground.settings("source 5 /there\nsource 6 /here\n" if origin in (REMOUNT, RECREATED) else "")
    ground.host.criu.options = [b"--criu_detached.source=5:/there"]
    found = ground.find()
    assert found[5].path == b"/there"
    assert ground.records is not None
    record = ground.records.mounts[5]
    assert (record.origin, record.filesystem) == (SUPPLIED, 0)
    assert record.bind_source is not None
    assert (record.bind_source.mountpoint, record.bind_source.path) == (b"/there", b".")
    assert set(ground.records.filesystems) == ({2} if origin in (REMOUNT, RECREATED) else set())


def test_not_provided(ground: Ground) -> None:
    ground.writer.mount(mount(5, SUPPLIED, root=b"/a\n"))
    ground.refused("mount 5 (fuse, root /a\\n)", '"source 5 PATH"', "criu_detached.source=5:PATH")
    ground.writer.mount(mount(6, SUPPLIED))
    ground.refused("mount 5", "and 1 more")
    ground.settings("source 5 /there")
    ground.refused("mount 6")


def test_unknown_mount(ground: Ground) -> None:
    """The setting of the whole machine may be meant for other images."""
    ground.writer.mount(mount(5, BIND_SOURCE))
    Path(settings.SYSTEM_FILE).write_text("source 6 /there")
    assert ground.find() == {}
    assert any("mount 6" in text for level, text in ground.host.criu.lines if level == log.WARN)
    ground.settings("source 6 /there")
    ground.refused("criu-detached.conf", "mount 6", "criu-detached show")


@pytest.mark.parametrize("setting", ["source 5 /there", "map /srv /there", "map / /there"])
def test_settings_of_the_machine(ground: Ground, setting: str) -> None:
    """A mount id is another mount's in other images; a place is the same one."""
    ground.writer.mount(mount(5, BIND_SOURCE))
    Path(settings.SYSTEM_FILE).write_text(setting)
    assert 5 in ground.find()
    warned = [text for level, text in ground.host.criu.lines if level == log.WARN]
    assert len(warned) == setting.startswith("source"), warned


def test_other_names(ground: Ground) -> None:
    """They were beneath the bind source's root, and are beneath the mount's root now."""
    ground.writer.mount(mount(5, BIND_SOURCE, b"tree"))
    handle = Handle(type=1, bytes=b"handle")
    for ino, alias in enumerate((b"tree/dir/other", b"outside", b"treeless")):
        file = File(mnt_id=5, ino=ino, path=b"gone", mode=stat.S_IFREG, handle=handle)
        ground.writer.ghost(Ghost(file=file, alias=alias))
    ground.settings("source 5 /there")
    ground.find()
    assert ground.records is not None
    assert [ghost.alias for ghost in ground.records.ghosts.values()] == [b"dir/other", b"", b""]


def test_deleted_root(ground: Ground) -> None:
    ground.writer.mount(mount(5, BIND_SOURCE, b"gone", root_deleted=1))
    ground.settings("source 5 /there")
    ground.refused("mount 5", "was deleted")


def test_deleted_files_of_a_user_namespace(ground: Ground) -> None:
    """Their owners are recorded as that namespace has them: another one's would be wrong."""
    record = mount(5, BIND_SOURCE)
    assert record.bind_source is not None
    record.bind_source.in_namespace = 1
    ground.writer.mount(record)
    file = File(mnt_id=5, ino=1, path=b"gone", mode=stat.S_IFREG)
    ground.writer.ghost(Ghost(file=file, inode=Inode()))
    ground.settings("source 5 /there")
    assert set(ground.find()) == {5}
    (ground.path / "userns-13.img").touch()
    ground.refused("mount 5", "user namespace")


def test_open(ground: Ground) -> None:
    """The user's path may be any; what the images add to it stays beneath, without symlinks."""
    (ground.path / "real" / "dir").mkdir(parents=True)
    (ground.path / "way").symlink_to("real")
    (ground.path / "real" / "out").symlink_to("/etc")
    ground.writer.mount(mount(5, BIND_SOURCE, b"dir"))
    ground.settings(f"map /srv {ground.path}/way")
    found = ground.find()[5]
    assert found.path == os.fsencode(ground.path / "way" / "dir")
    assert ground.records is not None
    fd = found.open(ground.records.mounts[5])
    assert os.path.samestat(os.fstat(fd), (ground.path / "real" / "dir").stat())
    os.close(fd)
    before = os.listdir("/proc/self/fd")
    for beneath in (b"out/passwd", b"absent"):
        with pytest.raises(DetachedError, match=r"criu-detached.conf: .*mount 5, cannot be opened"):
            UserProvided(found.given, beneath).open(ground.records.mounts[5])
    assert os.listdir("/proc/self/fd") == before
