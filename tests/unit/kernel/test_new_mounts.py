"""Filesystems are mounted; nothing else changes."""

from __future__ import annotations

import os
import stat

import pytest

from criu_detached import kernel
from criu_detached.kernel import new_mounts

pytestmark = pytest.mark.usefixtures("nothing_stays")


def test_new_mount() -> None:
    tree = new_mounts.new_mount(b"tmpfs", b"source", [b"size=1m", b"mode=0711"])
    try:
        assert kernel.fstatfs(tree).magic == 0x01021994
        assert stat.S_IMODE(os.fstat(tree).st_mode) == 0o711
        assert os.fstatvfs(tree).f_blocks * os.fstatvfs(tree).f_frsize == 1 << 20
        new_mounts.remount(tree, [b"size=2m"])
        assert os.fstatvfs(tree).f_blocks * os.fstatvfs(tree).f_frsize == 2 << 20
        with pytest.raises(OSError, match=r"nonsense: .*nonsense"):
            new_mounts.remount(tree, [b"nonsense"])
    finally:
        os.close(tree)


@pytest.mark.parametrize(
    ("fs_type", "options", "why"),
    [
        (b"nonsense", [], "fsopen"),
        (b"tmpfs", [b"nonsense=1"], "nonsense: Invalid argument; .*nonsense"),
        (b"tmpfs", [b"size=many"], "size: Invalid argument"),
        (b"ext4", [], "fsconfig|fsopen"),
    ],
)
def test_refused(fs_type: bytes, options: list[bytes], why: str) -> None:
    """The error has what the filesystem says."""
    with pytest.raises(OSError, match=why):
        new_mounts.new_mount(fs_type, b"/dev/null" if fs_type == b"ext4" else b"source", options)
