"""Block devices of the tests' own, loop devices over files, and filesystems on them."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from .harness import kernel
from .harness.scenario import DEADLINE

# What makes each filesystem, and how large it has to be at least, in bytes.
MAKERS = {
    "btrfs": (["mkfs.btrfs", "--quiet"], 128 << 20),
    "ext4": (["mkfs.ext4", "-q", "-b", "4096"], 16 << 20),
    "vfat": (["mkfs.vfat"], 16 << 20),
    "xfs": (["mkfs.xfs", "-q"], 300 << 20),
}
# Others that differ from one of those for nothing but finding them again.
MORE_MAKERS = {
    "exfat": (["mkfs.exfat", "-q"], 16 << 20),
    "f2fs": (["mkfs.f2fs", "-q"], 64 << 20),
    "ext2": (["mkfs.ext2", "-q"], 16 << 20),
    "ext3": (["mkfs.ext3", "-q"], 16 << 20),
    "msdos": (["mkfs.vfat"], 16 << 20),
}
# What makes an image of a directory, which nothing writes afterwards.
IMAGE_MAKERS = {
    "erofs": ["mkfs.erofs", "--quiet", "{image}", "{directory}"],
    "squashfs": ["mksquashfs", "{directory}", "{image}", "-quiet", "-no-progress"],
}


@dataclass
class Disk:
    """A loop device with a fresh filesystem on it."""

    device: str
    fs_type: str
    image: Path

    def mount(self, target: Path, options: str = "", flags: int = 0) -> None:
        """Mount it; the test is skipped where the kernel cannot."""
        if self.fs_type in IMAGE_MAKERS:
            flags |= kernel.MS_RDONLY
        try:
            kernel.mount(self.device, target, self.fs_type, flags, options)
        except OSError as error:
            if error.errno not in (errno.ENODEV, errno.EPERM):
                raise
            pytest.skip(f"this kernel mounts no {self.fs_type}: {error}")

    def carry(self, place: Path) -> None:
        """Copy what is on it, when the kernel has unmounted it: that follows a dump."""
        deadline = time.monotonic() + DEADLINE
        while True:
            try:
                os.close(os.open(self.device, os.O_RDONLY | os.O_EXCL))
                break
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise
            os.sched_yield()
        shutil.copy(self.image, place)

    def detach(self) -> None:
        """Let the device go: at once, or when its filesystem is unmounted."""
        detach(self.image)


def devices_over(image: Path) -> list[str]:
    """The loop devices that have a file behind them; others come and go at the same time."""
    command = ["losetup", "--associated", str(image), "--noheadings", "--output", "NAME"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


def detach(image: Path) -> None:
    """Let all loop devices over a file go."""
    for device in devices_over(image):
        subprocess.run(["losetup", "--detach", device], check=True)


@contextmanager
def loop_device(image: Path, *options: str) -> Iterator[str]:
    """Make a block device of a file for the time of a test; it is skipped where there is none."""
    command = ["losetup", "--find", "--show", *options, str(image)]
    made = subprocess.run(command, check=False, capture_output=True, text=True)
    device = made.stdout.strip()
    if not device:
        pytest.skip(f"this kernel gives no loop device: {made.stderr.strip()}")
    try:
        yield device
    finally:
        detach(image)


def make_filesystem(image: Path, fs_type: str) -> None:
    """Make an empty filesystem in a file; the test is skipped where the machine cannot."""
    maker, size = (MAKERS | MORE_MAKERS)[fs_type]
    if not shutil.which(maker[0]):
        pytest.skip(f"needs {maker[0]}")
    image.touch()
    os.truncate(image, max(size, image.stat().st_size))
    subprocess.run([*maker, str(image)], check=True, stdout=subprocess.DEVNULL)


@contextmanager
def disk(directory: Path, fs_type: str) -> Iterator[Disk]:
    """Make a disk for the time of a test; it is skipped where the machine cannot."""
    image = directory / fs_type
    make_filesystem(image, fs_type)
    with loop_device(image) as device:
        yield Disk(device, fs_type, image)


def make_image(directory: Path, fs_type: str, populate: Callable[[Path], None]) -> Path:
    """Make an image that nothing writes, with the files that populate makes."""
    maker, image, tree = IMAGE_MAKERS[fs_type], directory / fs_type, directory / "tree"
    if not shutil.which(maker[0]):
        pytest.skip(f"needs {maker[0]}")
    tree.mkdir()
    populate(tree)
    command = [part.format(image=image, directory=tree) for part in maker]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return image


@contextmanager
def image_disk(directory: Path, fs_type: str, populate: Callable[[Path], None]) -> Iterator[Disk]:
    """A disk with such an image on it."""
    image = make_image(directory, fs_type, populate)
    with loop_device(image, "--read-only") as device:
        yield Disk(device, fs_type, image)
