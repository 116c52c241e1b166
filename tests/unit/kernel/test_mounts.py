"""Mounts are cloned, attached and changed, by a file on them."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from criu_detached import kernel
from criu_detached.kernel import mounts, namespaces
from criu_detached.kernel.fds import Fd

from .. import support


def test_clone_mount(directory: int, tmp_path: Path) -> None:
    """The clone is another mount of the same files, with attributes of its own."""
    (tmp_path / "file").write_text("content")
    with support.clone_mount(directory) as clone:
        kernel.mount_setattr(clone, kernel.MOUNT_ATTR_RDONLY, 0)
        assert kernel.fstat(clone).mnt_id != kernel.fstat(directory).mnt_id
        assert kernel.fstatfs(clone).flags & os.ST_RDONLY
        with pytest.raises(OSError, match="openat2") as error:
            kernel.open_beneath(clone, b"file", os.O_RDWR)
        assert error.value.errno == errno.EROFS
    (tmp_path / "file").write_text("still writable")


def test_attach(directory: int, tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    with support.mounted(tmp_path / "below", "-t", "tmpfs", "none"):
        with support.clone_mount(directory) as clone:
            with support.opened(tmp_path / "below", os.O_PATH) as target:
                kernel.attach(clone, target)
            assert (tmp_path / "below" / "below").is_dir()
        subprocess.run(["umount", "--lazy", str(tmp_path / "below")], check=True)


def test_dry_run(directory: int) -> None:
    """Nothing stays of it but the refusal."""
    support.clone_mount(directory).close()
    read_only = mounts.mount_attr(kernel.MOUNT_ATTR_RDONLY, 0)
    id_mapped = mounts.mount_attr(kernel.MOUNT_ATTR_IDMAP, 0)
    before = support.open_fds(), Path("/proc/self/mountinfo").read_text()
    with Fd.open("/proc/self/ns/mnt", os.O_RDONLY) as ns:
        namespaces.dry_run_clone(ns, -1, directory, read_only)
        with pytest.raises(OSError, match="open_tree or mount_setattr"):
            namespaces.dry_run_clone(ns, -1, directory, id_mapped)
    assert (support.open_fds(), Path("/proc/self/mountinfo").read_text()) == before
