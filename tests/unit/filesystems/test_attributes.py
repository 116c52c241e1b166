"""Attributes of a recorded mount, as the kernel takes them."""

from __future__ import annotations

import pytest

from criu_detached import kernel
from criu_detached.filesystems.attributes import (
    KNOWN,
    attributes_to_change,
    make_user_namespace,
    needs_id_map,
)
from criu_detached.images.records import BindSource, Mount

MAP = [b"0 70000 2"]


@pytest.mark.parametrize(
    "attr", [0, kernel.MOUNT_ATTR_RDONLY, kernel.MOUNT_ATTR_NOATIME | kernel.MOUNT_ATTR_NOSUID]
)
def test_attributes_to_change(attr: int) -> None:
    """All that a mount has are set, all others cleared, and the access time mode in any case."""
    to_set, to_clear = attributes_to_change(Mount(attr=attr))
    assert to_set == attr
    assert to_clear & attr in (0, kernel.MOUNT_ATTR_NOATIME)
    assert to_set | to_clear == KNOWN
    assert to_clear & kernel.MOUNT_ATTR__ATIME == kernel.MOUNT_ATTR__ATIME


@pytest.mark.parametrize(
    ("mount", "needed"),
    [
        (Mount(), False),
        (Mount(uid_map=MAP), True),
        (Mount(gid_map=MAP, bind_source=BindSource()), True),
        (Mount(uid_map=MAP, bind_source=BindSource(id_mapped=1)), False),
    ],
)
def test_id_map(mount: Mount, needed: bool) -> None:
    """A source that has the id-map gives it to its clone."""
    assert needs_id_map(mount) is needed
    assert bool(attributes_to_change(mount)[0] & kernel.MOUNT_ATTR_IDMAP) is needed
    if not needed:
        assert make_user_namespace(mount) == -1
