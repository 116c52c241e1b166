"""What statmount(2) says is read as the kernel's headers have it."""

from __future__ import annotations

import errno
import os
import re
import struct
import subprocess
from pathlib import Path

import pytest

from criu_detached import kernel
from criu_detached.kernel import namespaces, statmount
from criu_detached.kernel.statmount import StatMount

from .. import support

# struct statmount of linux/mount.h up to Linux 7.0, without its spare end: 512 bytes in all.
FIELDS = {
    "size": "I",
    "mnt_opts": "I",
    "mask": "Q",
    "sb_dev_major": "I",
    "sb_dev_minor": "I",
    "sb_magic": "Q",
    "sb_flags": "I",
    "fs_type": "I",
    "mnt_id": "Q",
    "mnt_parent_id": "Q",
    "mnt_id_old": "I",
    "mnt_parent_id_old": "I",
    "mnt_attr": "Q",
    "mnt_propagation": "Q",
    "mnt_peer_group": "Q",
    "mnt_master": "Q",
    "propagate_from": "Q",
    "mnt_root": "I",
    "mnt_point": "I",
    "mnt_ns_id": "Q",
    "fs_subtype": "I",
    "sb_source": "I",
    "opt_num": "I",
    "opt_array": "I",
    "opt_sec_num": "I",
    "opt_sec_array": "I",
    "supported_mask": "Q",
    "mnt_uidmap_num": "I",
    "mnt_uidmap": "I",
    "mnt_gidmap_num": "I",
    "mnt_gidmap": "I",
}


LAYOUT = "<" + "".join(FIELDS.values())


STRINGS_AT = 512


def crafted(strings: bytes = b"", **values: int) -> StatMount:
    """An answer with the given fields."""
    known = struct.pack(LAYOUT, *(values.get(name, 0) for name in FIELDS))
    return StatMount(known.ljust(STRINGS_AT, b"\0") + strings)


def test_layout_is_the_kernels(tmp_path: Path) -> None:
    """Checked against the header that is installed, as far as it goes."""
    header = Path("/usr/include/linux/mount.h")
    if not header.exists():
        pytest.skip("needs the kernel's headers")
    declared = re.search(r"struct statmount \{(.*?)\n\};", header.read_text(), re.DOTALL)
    known = [name for name in FIELDS if declared and re.search(rf"\b{name};", declared.group(1))]
    assert "mnt_root" in known
    source = "#include <linux/mount.h>\n#include <stddef.h>\n#include <stdio.h>\nint main(void) {\n"
    for name in [*known, "str"]:
        source += f'printf("%s %zu\\n", "{name}", offsetof(struct statmount, {name}));\n'
    (tmp_path / "offsets.c").write_text(source + "}\n")
    program = str(tmp_path / "offsets")
    subprocess.run(["cc", "-o", program, str(tmp_path / "offsets.c")], check=True)
    found = dict(
        line.split() for line in subprocess.check_output([program], text=True).splitlines()
    )
    assert int(found.pop("str")) == STRINGS_AT
    names = list(FIELDS)
    for name, offset in found.items():
        before = "".join(FIELDS[other] for other in names[: names.index(name)])
        assert int(offset) == struct.calcsize("<" + before), name


def test_numbers() -> None:
    found = crafted(
        mask=1 << 40 | 3,
        sb_dev_major=8,
        sb_dev_minor=0x12345,
        sb_magic=0xEF53,
        mnt_id=1 << 33,
        mnt_attr=kernel.MOUNT_ATTR_RDONLY,
        mnt_parent_id=77,
        mnt_ns_id=78,
    )
    assert found.mask == 1 << 40 | 3
    assert found.sb_dev == os.makedev(8, 0x12345)
    assert found.sb_magic == 0xEF53
    assert found.mnt_id == 1 << 33
    assert found.mnt_attr == kernel.MOUNT_ATTR_RDONLY


def test_strings() -> None:
    strings = b"\0ext4\0/some root\0/point\0"
    found = crafted(strings, fs_type=1, mnt_root=6, mnt_point=17)
    assert found.fs_type == b"ext4"
    assert found.mnt_root == b"/some root"
    assert found.mnt_point == b"/point"


def test_id_maps() -> None:
    strings = b"\0" + b"0 1000 1\0" + b"1 5000 10\0" + b"0 2000 1\0"
    found = crafted(strings, mnt_uidmap_num=2, mnt_uidmap=1, mnt_gidmap_num=1, mnt_gidmap=20)
    assert found.uid_map == [b"0 1000 1", b"1 5000 10"]
    assert found.gid_map == [b"0 2000 1"]


def test_no_id_maps() -> None:
    assert crafted(b"\0").uid_map == []
    assert crafted(b"\0").gid_map == []


def test_statmount_by_fd(tmp_path: Path, directory: int) -> None:
    """Against mountinfo, where the kernel has it."""
    wanted = (
        statmount.STATMOUNT_SB_BASIC
        | statmount.STATMOUNT_MNT_BASIC
        | statmount.STATMOUNT_MNT_ROOT
        | statmount.STATMOUNT_FS_TYPE
        | statmount.STATMOUNT_MNT_NS_ID
    )
    if not statmount.has_by_fd():
        with pytest.raises(OSError, match="statmount") as error:
            statmount.by_fd(directory, wanted)
        assert error.value.errno == errno.EINVAL
        return
    found = statmount.by_fd(directory, wanted)
    mount = support.mount_of(tmp_path)
    assert found.mask & wanted == wanted
    assert found.sb_dev == mount.dev
    assert (found.fs_type, found.mnt_root) == (mount.fs_type, mount.root)
    assert found.mnt_id == kernel.mnt_id_unique(directory)


def test_attached_id_maps(tmp_path: Path) -> None:
    """Of a mount with an id-map and of one without, in this namespace."""
    (tmp_path / "at").mkdir()
    with support.mounted(tmp_path / "at", "-t", "tmpfs", "none"):
        with support.opened(tmp_path / "at", os.O_PATH) as plain:
            tree = support.clone_mount(plain)
            try:
                assert statmount.attached_id_maps(plain) == ([], [])
                userns = namespaces.user_namespace(b"0 70000 1\n", b"0 80000 2\n")
                kernel.mount_setattr(tree, kernel.MOUNT_ATTR_IDMAP, 0, userns)
                os.close(userns)
                kernel.attach(tree, plain)
                found = statmount.attached_id_maps(tree)
            except OSError as error:
                pytest.skip(f"this kernel does not tell id-maps, or makes none: {error}")
            finally:
                os.close(tree)
        subprocess.run(["umount", "--lazy", str(tmp_path / "at")], check=True)
    assert found == ([b"0 70000 1"], [b"0 80000 2"])
