"""Which filesystem instance is it?"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from criu_detached.filesystems.superblock import boot_id, is_same, superblock_of
from criu_detached.images.records import Superblock

from .. import support

DEV = os.makedev(0, 300)
# f_fsid of a filesystem that has nothing better than its device number: huge_encode_dev()
DEV_AS_FSID = 300 & 0xFF | (300 & ~0xFF) << 12
UUID = bytes(range(16))


def superblock(dev: int = DEV, fsid: int = 0, uuid: bytes = b"", magic: int = 1) -> Superblock:
    """A superblock that differs from others in what is said."""
    return Superblock(fs_type=b"fs", magic=magic, dev=dev, fsid=fsid, uuid=uuid)


OTHER = DEV + 1
BY_UUID = superblock(uuid=UUID)
BY_FSID = superblock(fsid=12345678)
BY_DEVICE = superblock(fsid=DEV_AS_FSID)
BY_NOTHING = superblock()


@pytest.mark.parametrize("one", [BY_UUID, BY_FSID, BY_DEVICE, BY_NOTHING])
def test_itself_on_the_same_boot(one: Superblock) -> None:
    assert is_same(one, one, True)


@pytest.mark.parametrize(
    ("one", "same"), [(BY_UUID, True), (BY_FSID, True), (BY_DEVICE, False), (BY_NOTHING, False)]
)
def test_itself_after_a_boot(one: Superblock, same: bool) -> None:
    """Device numbers mean nothing then."""
    assert is_same(one, one, False) is same


@pytest.mark.parametrize("same_boot", [True, False])
@pytest.mark.parametrize(
    ("one", "other"),
    [
        (superblock(magic=1, uuid=UUID), superblock(magic=2, uuid=UUID)),
        (superblock(uuid=UUID), superblock(uuid=UUID[::-1])),
        (superblock(fsid=1 << 40), superblock(fsid=1 << 41)),
        (superblock(DEV), superblock(OTHER)),
    ],
)
def test_others(one: Superblock, other: Superblock, same_boot: bool) -> None:
    assert not is_same(one, other, same_boot)


@pytest.mark.parametrize("same_boot", [True, False])
def test_mounted_again_on_another_device(same_boot: bool) -> None:
    """What has a UUID or an id of its own is known by it: a loop device may be another one."""
    for one in (BY_UUID, BY_FSID):
        other = superblock(OTHER, one.fsid, one.uuid)
        assert is_same(one, other, same_boot)


def test_uuid_that_is_not_told_now() -> None:
    """An older kernel, or one that has the UUID only now, does not make it another one."""
    assert is_same(superblock(fsid=1 << 40, uuid=UUID), superblock(fsid=1 << 40), True)
    assert is_same(superblock(fsid=1 << 40), superblock(fsid=1 << 40, uuid=UUID), True)


def test_of_a_real_directory(tmp_path: Path, directory: int) -> None:
    found = superblock_of(directory, b"some")
    status = os.statvfs(tmp_path)
    assert found.fs_type == b"some"
    assert found.dev == tmp_path.stat().st_dev
    assert found.fsid == status.f_fsid
    assert found.magic
    assert is_same(found, superblock_of(directory, b"some"), True)


def test_of_an_o_path_fd(tmp_path: Path, directory: int) -> None:
    fd = os.open(tmp_path, os.O_PATH)
    try:
        assert superblock_of(fd, b"some") == superblock_of(directory, b"some")
    finally:
        os.close(fd)


def test_of_a_file(tmp_path: Path, directory: int) -> None:
    """Without a directory the UUID is not to be had; all else is the same."""
    (tmp_path / "file").touch()
    fd = os.open(tmp_path / "file", os.O_PATH)
    try:
        found = superblock_of(fd, b"some")
    finally:
        os.close(fd)
    assert is_same(found, superblock_of(directory, b"some"), True)


def test_two_tmpfs_differ(tmp_path: Path) -> None:
    found = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        with support.mounted(tmp_path / name, "-t", "tmpfs", "none"):
            fd = os.open(tmp_path / name, os.O_PATH)
            found.append(superblock_of(fd, b"tmpfs"))
            os.close(fd)
    assert not is_same(found[0], found[1], True)


def test_boot_id() -> None:
    assert boot_id() == boot_id()
    assert len(boot_id()) == 36
