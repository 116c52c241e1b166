"""Records of mounts that no dump writes are refused."""

from __future__ import annotations

from typing import Any

import pytest

from criu_detached import kernel
from criu_detached.errors import DetachedError
from criu_detached.images.records import BindSource
from criu_detached.restore.checks import check_mount

from ..support import good_mount


def test_good_record() -> None:
    check_mount(good_mount())


@pytest.mark.parametrize("origin", [0, 5, 99, (1 << 64) - 1])
def test_unknown_origin(origin: int) -> None:
    with pytest.raises(DetachedError, match=f"mount 300 has the unknown origin {origin}:"):
        check_mount(good_mount(origin=origin))


@pytest.mark.parametrize("field", ["bind_source", "superblock"])
def test_part_is_missing(field: str) -> None:
    with pytest.raises(DetachedError, match="mount 300"):
        check_mount(good_mount(**{field: None}))


@pytest.mark.parametrize(
    "attr", [0x8, kernel.MOUNT_ATTR_IDMAP, 0x100, 1 << 22, 1 << 63, (1 << 64) - 1]
)
def test_attributes(attr: int) -> None:
    known = attr == kernel.MOUNT_ATTR_NOEXEC
    if known:
        check_mount(good_mount(attr=attr))
        return
    with pytest.raises(DetachedError, match=f"unknown attributes {attr:#x}"):
        check_mount(good_mount(attr=attr))


@pytest.mark.parametrize("field", ["mountpoint", "path"])
@pytest.mark.parametrize("path", [b"..", b"/../etc", b"a/..", b"a\0b", b"/a/../../b"])
def test_paths_that_leave(field: str, path: bytes) -> None:
    names: dict[str, Any] = {"mountpoint": b"/mnt", "path": b"tree", field: path}
    with pytest.raises(DetachedError, match="mount 300 has the invalid path") as error:
        check_mount(good_mount(bind_source=BindSource(mnt_id=30, **names)))
    assert "\0" not in str(error.value)


def test_deleted_root_that_is_all_of_the_source() -> None:
    """What was above it, where it had its name, is not shown then."""
    source = BindSource(mnt_id=30, mountpoint=b"/mnt", path=b".")
    check_mount(good_mount(bind_source=source))
    with pytest.raises(DetachedError, match="mount 300 has a deleted root"):
        check_mount(good_mount(bind_source=source, root_deleted=1))
