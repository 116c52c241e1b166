"""Records of filesystems on devices that no dump writes are refused before anything is mounted."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from criu_detached import kernel
from criu_detached.dump import files
from criu_detached.dump.describe.new_mount import NewMount
from criu_detached.dump.describe.sources import Source
from criu_detached.dump.filesystems.devices import check_living, describe_device
from criu_detached.dump.filesystems.probe import RemountedMount
from criu_detached.dump.open_file import OpenFile
from criu_detached.errors import DetachedError
from criu_detached.filesystems.devices import is_same
from criu_detached.images.record_reader import read_records
from criu_detached.images.record_writer import RecordWriter
from criu_detached.images.records import (
    FORMAT,
    REMOUNT,
    BindSource,
    BlockDevice,
    Filesystem,
    Header,
    Loop,
    Mount,
    Superblock,
)
from criu_detached.kernel import blkid
from criu_detached.kernel.fds import Fd
from criu_detached.restore.checks import check_filesystems
from criu_detached.restore.filesystems import disk

from .. import support

UUID = b"01234567-89ab-cdef-0123-456789abcdef"


def good(**changes: object) -> Filesystem:
    """A record that a dump could write, of a device that is not there, with something changed."""
    filesystem = Filesystem(
        id=1,
        superblock=Superblock(fs_type=b"ext4", magic=0xEF53),
        source=b"/dev/absent",
        options=[b"rw", b"errors=continue"],
        devices=[BlockDevice(path=b"/dev/absent", size=1 << 20, type=b"ext4", uuid=UUID)],
    )
    for name, value in changes.items():
        setattr(filesystem, name, value)
    return filesystem


def refused(filesystem: Filesystem, why: str) -> None:
    """It is refused with one line, and nothing stays open or mounted."""

    def state() -> tuple[list[str], bytes]:
        return sorted(os.listdir("/proc/self/fd")), Path("/proc/self/mountinfo").read_bytes()

    before = state()
    with pytest.raises(DetachedError, match=why) as error:
        disk.find_devices(filesystem)
    assert len(str(error.value).splitlines()) == 1
    assert state() == before


@pytest.mark.parametrize("fs_type", [b"tmpfs", b"proc", b"overlay", b"nfs", b"fuseblk", b"absent"])
def test_type_without_device(fs_type: bytes) -> None:
    refused(good(superblock=Superblock(fs_type=fs_type)), "lies on no block device")


@pytest.mark.parametrize("fs_type", [b"", b"../ext4", b"ext4\n", b"ext4 -f", b"\xff", b"x" * 300])
def test_no_type(fs_type: bytes) -> None:
    refused(good(superblock=Superblock(fs_type=fs_type)), "lies on no block device")


@pytest.mark.parametrize(
    "option",
    [b"", b"=x", b"a\0b", b"source=/dev/sda", b"device=/dev/sda", b"logdev=/dev/sda", b"subvol=x"],
)
def test_options(option: bytes) -> None:
    refused(good(options=[b"rw", option]), "options that no dump writes")


@pytest.mark.parametrize("part", [{"devices": []}, {"superblock": None}])
def test_part_is_missing(part: dict[str, object]) -> None:
    refused(good(**part), "lies on no block device")


@pytest.mark.parametrize("path", [b"", b"/etc/passwd", b"absent", b"/dev/a\0b", b"/dev"])
def test_path(path: bytes) -> None:
    refused(good(devices=[BlockDevice(path=path, type=b"ext4", uuid=UUID)]), "invalid device")


@pytest.mark.parametrize("path", [b"/dev/absent", b"/dev/null", b"/dev/../etc/passwd", b"/dev/shm"])
def test_not_found(path: bytes) -> None:
    device = BlockDevice(path=path, type=b"ext4", uuid=UUID)
    refused(good(devices=[device]), "no block device carries the filesystem ext4 .*01234567-89ab")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"file": b"relative"}, "the record is invalid|Invalid argument"),
        ({"file": b"/absent"}, "/absent: No such file"),
        ({"file": b"/dev/null"}, "carries no filesystem|no block device"),
        ({"file": b"/etc"}, "Is a directory|no block device"),
        ({"flags": 1 << 20}, "Invalid argument"),
        ({"offset": 1 << 61}, "no block device"),
    ],
)
def test_loop(tmp_path: Path, change: dict[str, object], why: str) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    loop = Loop(file=bytes(image), flags=1, block_size=512)
    for name, value in change.items():
        setattr(loop, name, value)
    device = BlockDevice(path=b"/dev/absent", type=b"ext4", uuid=UUID, loop=loop)
    refused(good(devices=[device]), why)


@pytest.mark.parametrize("uuid", [b"", b"1234-ABCD", b"\xff" * 36, b"z" * 32])
def test_short_names_need_the_size(uuid: bytes) -> None:
    """A serial alone is not enough, and what is no UUID does not end in another error."""
    wanted = BlockDevice(path=b"/dev/absent", size=1, type=b"vfat", uuid=uuid)
    other = BlockDevice(path=b"/dev/absent", size=2, type=b"vfat", uuid=uuid)
    assert not is_same(wanted, other)
    refused(good(devices=[wanted]), "no block device carries the filesystem vfat")


@pytest.mark.parametrize("read", [lambda _: b"", os.urandom], ids=["empty", "noise"])
def test_probe(tmp_path: Path, read: Callable[[int], bytes]) -> None:
    """libblkid finds nothing, and says so."""
    path = tmp_path / "image"
    path.write_bytes(read(1 << 20))
    fd = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="libblkid"):
            blkid.blkid_probe(fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize("change", [{"offset": 1 << 62}, {"block_size": 1 << 32}])
def test_record_file(tmp_path: Path, change: dict[str, Any]) -> None:
    """Numbers that the kernel has fewer bits for are refused as they are read."""
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        writer = RecordWriter(directory, Header(format=FORMAT))
        writer.filesystem(good(devices=[BlockDevice(loop=Loop(**change))]))
        with pytest.raises(DetachedError, match="is larger than"):
            read_records(directory)
    finally:
        os.close(directory)


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (Filesystem(id=1), "filesystem 1 has no type"),
        (Mount(mnt_id=3, origin=REMOUNT, filesystem=2), "mount 3 is of a filesystem that is not"),
    ],
)
def test_filesystem_is_missing(tmp_path: Path, record: Filesystem | Mount, why: str) -> None:
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        writer = RecordWriter(directory, Header(format=FORMAT))
        if isinstance(record, Mount):
            writer.mount(record)
        else:
            writer.filesystem(record)
        with pytest.raises(DetachedError, match=why):
            check_filesystems(read_records(directory))
    finally:
        os.close(directory)


def test_device_is_gone() -> None:
    with pytest.raises(DetachedError, match=r"block device 240:1000 is gone"):
        describe_device(os.makedev(240, 1000))


def test_device_was_replaced(tmp_path: Path) -> None:
    """The number is that of a device that no filesystem has for itself: nothing is mounted."""
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    command = ["losetup", "--find", "--show", str(image)]
    made = subprocess.run(command, check=False, capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"can't make a loop device: {made.stderr.strip()}")
    device = made.stdout.strip()
    try:
        with pytest.raises(DetachedError, match=f"was replaced: {device} .* is in no use"):
            describe_device(os.stat(device).st_rdev)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def test_living_filesystem(tmp_path: Path) -> None:
    """What lies on the device is compared with what the kernel has in memory."""
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        living, fs = kernel.fs_uuid(fd), kernel.fstatfs(fd)
        if len(living) != 16:
            pytest.skip("the kernel does not tell a UUID")
        own, other = (str(uuid.UUID(bytes=data)).encode() for data in (living, bytes(16)))
        check_living(fd, fs, BlockDevice(path=b"/dev/sda", type=b"fs", uuid=own))
        check_living(fd, fs, BlockDevice(path=b"/dev/sda", type=b"fs", uuid=b"1234-5678"))
        with pytest.raises(DetachedError, match=r"/dev/sda carries another filesystem, fs \(0000"):
            check_living(fd, fs, BlockDevice(path=b"/dev/sda", type=b"fs", uuid=other))
    finally:
        os.close(fd)


def test_confined(tmp_path: Path) -> None:
    """For a user namespace the host mounts without devices, so an open one is refused."""
    record = Mount(mnt_id=1, attr=kernel.MOUNT_ATTR_NOEXEC, bind_source=BindSource())
    root = Fd(os.open(tmp_path, os.O_PATH))
    with Source(support.mount_of(tmp_path), root) as source:
        mount = RemountedMount(NewMount(OpenFile.of(root), None), record, source, None)
    with mount.source:
        mount.confine()
    confined = kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV
    assert record.attr == kernel.MOUNT_ATTR_NOEXEC | confined
    for flags, refusal in ((os.O_RDONLY, True), (os.O_PATH, False)):
        with support.opened(Path("/dev/null"), flags) as fd:
            if refusal:
                with pytest.raises(DetachedError, match="nodev"):
                    files._refuse_device(OpenFile.of(fd), mount)
            else:
                files._refuse_device(OpenFile.of(fd), mount)
