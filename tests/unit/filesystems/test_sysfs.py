"""What sysfs says of block devices."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from criu_detached.filesystems import sysfs

ABSENT = os.makedev(240, 1000)


@pytest.fixture
def name() -> bytes:
    """Some block device."""
    if not Path("/sys/class/block").is_dir() or not (names := sysfs.block_devices()):
        pytest.skip("this machine has no block device")
    return names[0]


def test_device(name: bytes) -> None:
    dev = sysfs.number_of(name)
    assert sysfs.attribute(name, b"dev") == b"%d:%d" % (os.major(dev), os.minor(dev))
    assert sysfs.name_of(dev) == name
    assert sysfs.node_with(dev) == sysfs.node_of(name)
    assert sysfs.attribute(name, b"absent") == b""


def test_absent() -> None:
    assert sysfs.attribute(b"absent", b"dev") == b""
    assert sysfs.number_of(b"absent") == 0
    assert sysfs.node_with(ABSENT) == b""
    assert not sysfs.is_part_of_another(b"absent")
    with pytest.raises(FileNotFoundError):
        sysfs.name_of(ABSENT)


def test_node_of_a_name_with_a_slash() -> None:
    """Of devices in folders of /dev sysfs shows an exclamation mark (kobject_set_name_vargs)."""
    assert sysfs.node_of(b"cciss!c0d0") == b"/dev/cciss/c0d0"


@pytest.fixture
def in_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that is taken for that of sysfs: a disk of two partitions, part of a RAID."""
    monkeypatch.setattr(sysfs, "_CLASS", bytes(tmp_path / "class") + b"/")
    disk = tmp_path / "devices" / "disk"
    for path, text in {"part1/partition": "1", "part2/partition": "2", "queue/x": "3"}.items():
        (disk / path).parent.mkdir(parents=True)
        (disk / path).write_text(f"{text}\n")
    (disk / "holders" / "md0").mkdir(parents=True)
    (tmp_path / "class").mkdir()
    for target in (disk, disk / "part1", disk / "part2"):
        (tmp_path / "class" / target.name).symlink_to(target)


@pytest.mark.usefixtures("in_files")
def test_partitions() -> None:
    assert sysfs.block_devices() == [b"disk", b"part1", b"part2"]
    assert list(sysfs.partitions_of(b"disk")) == [b"part1", b"part2"]
    assert list(sysfs.partitions_of(b"part1")) == []
    assert sysfs.disk_of(b"part2") == b"disk"
    assert sysfs.is_part_of_another(b"disk")
    assert not sysfs.is_part_of_another(b"part1")


def test_node_is_a_block_device(name: bytes) -> None:
    node = Path(os.fsdecode(sysfs.node_of(name)))
    if not node.exists():
        pytest.skip("nothing makes device nodes here")
    found = node.stat()
    assert stat.S_ISBLK(found.st_mode)
    assert found.st_rdev == sysfs.number_of(name)
