"""Mount namespaces: all of them, and one of this process alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from criu_detached import kernel
from criu_detached.errors import DetachedError
from criu_detached.kernel import namespaces, new_mounts, statmount

from .. import support


def test_mount_ns_ids() -> None:
    try:
        found = list(namespaces.mount_ns_ids())
    except OSError as error:  # ENOTTY before Linux 6.12
        pytest.skip(f"this kernel (before 6.12) has no walk over mount namespaces: {error}")
    assert len(found) == len(set(found)) >= 1
    root = os.open("/", kernel.O_PATH)
    try:
        assert statmount.mount_in_ns(kernel.mnt_id_unique(root), found[0])
    finally:
        os.close(root)
    assert not statmount.mount_in_ns((1 << 62) + 1, found[0])


def test_user_namespace() -> None:
    try:
        fd = namespaces.user_namespace(b"0 1000 10\n", b"0 2000 10\n")
    except PermissionError:
        pytest.skip("may not make user namespaces")
    assert os.readlink(f"/proc/self/fd/{fd}").startswith("user:")
    os.close(fd)


def test_user_namespace_with_a_bad_map() -> None:
    before = support.open_fds()
    with pytest.raises(OSError, match="user namespace"):
        namespaces.user_namespace(b"nonsense\n", b"0 0 1\n")
    assert support.open_fds() == before


@pytest.mark.usefixtures("nothing_stays")
def test_private_namespace(tmp_path: Path) -> None:
    """Mounts of it are seen nowhere else; a clone of one outlives it."""
    here = Path("/proc/self/ns/mnt").readlink()
    with namespaces.PrivateNamespace():
        assert Path("/proc/self/ns/mnt").readlink() != here
        tree = new_mounts.new_mount(b"tmpfs", b"source", [])
        with support.opened(tmp_path, os.O_PATH) as point:
            kernel.attach(tree, point)
        (tmp_path / "file").write_text("content")
        clone = kernel.clone_mount(tree)
        os.close(tree)
    assert not (tmp_path / "file").exists()
    fd = os.open("file", os.O_RDONLY, dir_fd=clone)
    assert os.read(fd, 100) == b"content"
    os.close(fd)
    os.close(clone)


@pytest.mark.usefixtures("nothing_stays")
def test_private_namespace_that_is_left_by_an_error() -> None:
    with pytest.raises(DetachedError), namespaces.PrivateNamespace():
        raise DetachedError("in the midst of it")
