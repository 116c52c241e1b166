"""Block devices of the tests' own, loop devices over files, and filesystems on them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from .harness import kernel

# What makes each filesystem, and how large it has to be at least, in bytes.
MAKERS = {
    "btrfs": (["mkfs.btrfs", "--quiet"], 128 << 20),
    "ext4": (["mkfs.ext4", "-q"], 16 << 20),
    "vfat": (["mkfs.vfat"], 16 << 20),
    "xfs": (["mkfs.xfs", "-q"], 300 << 20),
}


@dataclass
class Disk:
    """A loop device with a fresh filesystem on it."""

    device: str
    fs_type: str

    def mount(self, target: Path) -> None:
        """Mount it; the test is skipped where the kernel cannot."""
        try:
            kernel.mount(self.device, target, self.fs_type)
        except OSError as error:
            pytest.skip(f"this kernel mounts no {self.fs_type}: {error}")


@contextmanager
def loop_device(image: Path) -> Iterator[str]:
    """Make a block device of a file for the time of a test; it is skipped where there is none."""
    command = ["losetup", "--find", "--show", str(image)]
    made = subprocess.run(command, check=False, capture_output=True, text=True)
    device = made.stdout.strip()
    if not device:
        pytest.skip(f"this kernel gives no loop device: {made.stderr.strip()}")
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@contextmanager
def disk(directory: Path, fs_type: str) -> Iterator[Disk]:
    """Make a disk for the time of a test; it is skipped where the machine cannot."""
    maker, size = MAKERS[fs_type]
    if not shutil.which(maker[0]):
        pytest.skip(f"needs {maker[0]}")
    image = directory / fs_type
    image.touch()
    os.truncate(image, size)
    subprocess.run([*maker, str(image)], check=True, stdout=subprocess.DEVNULL)
    with loop_device(image) as device:
        yield Disk(device, fs_type)
