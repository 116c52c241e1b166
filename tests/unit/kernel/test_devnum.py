"""Device numbers as the kernel writes them, and back."""

from __future__ import annotations

import os
from mmap import PROT_READ, mmap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criu_detached import kernel
from criu_detached.kernel import devnum

from .. import support

MAPS = Path("/proc/self/maps")
MAJORS = st.integers(0, (1 << 12) - 1)
MINORS = st.integers(0, (1 << 20) - 1)
DEVICES = st.builds(os.makedev, MAJORS, MINORS)


@given(DEVICES)
def test_there_and_back(dev: int) -> None:
    assert devnum.kdev_decode(devnum.kdev_encode(dev)) == dev
    assert devnum.huge_decode_dev(devnum.huge_encode_dev(dev)) == dev
    assert devnum.parse_dev(devnum.format_dev(dev).encode()) == dev


@pytest.mark.parametrize(
    ("major", "minor", "kdev", "huge", "text", "maps"),
    [
        (0, 0x1F, 0x1F, 0x1F, "0:31", b"00:1f"),
        (8, 0x13, 0x800013, 0x813, "8:19", b"08:13"),
        (0, 300, 300, 0x10002C, "0:300", b"00:12c"),
        (0xFFF, 0xFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, "4095:1048575", b"fff:fffff"),
    ],
)
def test_encodings(major: int, minor: int, kdev: int, huge: int, text: str, maps: bytes) -> None:
    dev = os.makedev(major, minor)
    assert devnum.kdev_encode(dev) == kdev
    assert devnum.huge_encode_dev(dev) == huge
    assert devnum.format_dev(dev) == text
    assert devnum.format_dev_of_maps(dev) == maps


@pytest.mark.parametrize("text", [b"", b"8", b"8:", b"8:1:2", b"a:b"])
def test_no_device_number(text: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  (whatever it says)
        devnum.parse_dev(text)


def test_as_the_kernel_has_them(tmp_path: Path) -> None:
    """One superblock in mountinfo, in f_fsid, in fdinfo of a watch and in the maps of a file."""
    place = tmp_path / "ramfs"
    place.mkdir()
    with support.mounted(place, "-t", "ramfs", "none"):
        dev = support.mount_of(place).dev
        with support.opened(place, os.O_PATH) as fd:
            assert kernel.fstatfs(fd).fsid == devnum.huge_encode_dev(dev)
        with support.inotify(place) as watch:
            shown = Path(f"/proc/self/fdinfo/{watch}").read_text().split("sdev:")[1].split()[0]
            assert devnum.kdev_decode(int(shown, 16)) == dev
        (place / "file").write_bytes(b"x")
        with support.opened(place / "file") as fd, mmap(fd, 1, prot=PROT_READ):
            (line,) = (line for line in MAPS.read_bytes().splitlines() if b"ramfs/file" in line)
        assert line.split()[3] == devnum.format_dev_of_maps(dev)
