"""Options of superblocks on block devices."""

from __future__ import annotations

from criu_detached.filesystems.options import needed_options, read_options, strip_value
from criu_detached.kernel.mountinfo import MountInfo


def test_read_options() -> None:
    """Marks of the security module and of one mount's subvolume are none."""
    line = rb"36 35 8:1 / /mnt rw - btrfs /dev/a rw,seclabel,subvolid=5,subvol=/,degraded,x=a\040b"
    assert read_options(MountInfo(line)) == [b"rw", b"degraded", b"x=a b"]


def test_strip_value() -> None:
    assert [strip_value(option) for option in (b"a=b=c", b"a", b"")] == [b"a", b"a", b""]


def test_needed_options() -> None:
    """Roots of mounts are counted from the top of a btrfs, and all its devices are named."""
    assert needed_options(b"btrfs", [b"/b", b"/c"]) == [b"subvolid=5", b"device=/b", b"device=/c"]
    assert needed_options(b"ext4", []) == []
