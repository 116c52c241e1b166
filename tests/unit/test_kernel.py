"""System calls: what is asked for is what the kernel's headers say."""

from __future__ import annotations

import errno
import os
import re
import socket
import struct
import subprocess
from pathlib import Path

import pytest

from criu_detached import kernel
from criu_detached.kernel import StatMount

from . import support

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
        kernel.STATMOUNT_SB_BASIC
        | kernel.STATMOUNT_MNT_BASIC
        | kernel.STATMOUNT_MNT_ROOT
        | kernel.STATMOUNT_FS_TYPE
        | kernel.STATMOUNT_MNT_NS_ID
    )
    if not kernel.has_statmount_by_fd():
        with pytest.raises(OSError, match="statmount") as error:
            kernel.statmount_by_fd(directory, wanted)
        assert error.value.errno == errno.EINVAL
        return
    found = kernel.statmount_by_fd(directory, wanted)
    mount = support.mount_of(tmp_path)
    assert found.mask & wanted == wanted
    assert found.sb_dev == mount.dev
    assert (found.fs_type, found.mnt_root) == (mount.fs_type, mount.root)
    assert found.mnt_id == kernel.mnt_id_unique(directory)


@pytest.fixture
def tree(tmp_path: Path, directory: int) -> int:
    """A directory with links of all kinds in it."""
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "file").write_text("content")
    (tmp_path / "to-file").symlink_to("dir/file")
    (tmp_path / "to-dir").symlink_to("dir")
    (tmp_path / "to-etc").symlink_to("/etc")
    (tmp_path / "up").symlink_to("..")
    return directory


def test_open_beneath(tree: int, tmp_path: Path) -> None:
    fd, facts = kernel.open_beneath(tree, b"dir/file", os.O_RDONLY | os.O_CLOEXEC)
    with os.fdopen(fd) as file:
        assert file.read() == "content"
        status = os.fstat(fd)
    assert (facts.dev, facts.ino, facts.mode) == (status.st_dev, status.st_ino, status.st_mode)
    assert (facts.nlink, facts.uid, facts.gid) == (status.st_nlink, status.st_uid, status.st_gid)
    assert facts.mnt_id == support.mount_of(tmp_path).mnt_id


@pytest.mark.parametrize(
    ("path", "refusal"),
    [
        (b"to-file", errno.ELOOP),
        (b"to-dir/file", errno.ELOOP),
        (b"to-etc/passwd", errno.ELOOP),
        (b"up", errno.ELOOP),
        (b"..", errno.EXDEV),
        (b"dir/../../x", errno.EXDEV),
        (b"/etc/passwd", errno.EXDEV),
        (b"absent", errno.ENOENT),
        (b"dir/file/x", errno.ENOTDIR),
        (b"", errno.ENOENT),
    ],
)
def test_beneath_refuses(tree: int, path: bytes, refusal: int) -> None:
    before = support.open_fds()
    with pytest.raises(OSError, match="openat2") as error:
        kernel.open_beneath(tree, path, os.O_RDONLY | os.O_CLOEXEC)
    assert error.value.errno == refusal
    assert support.open_fds() == before


def test_magic_link_is_refused() -> None:
    own = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(OSError, match="openat2") as error:
            kernel.open_beneath(own, b"0", os.O_RDONLY | os.O_CLOEXEC)
        assert error.value.errno == errno.ELOOP
        with pytest.raises(OSError, match="openat2") as error:
            kernel.openat2(own, b"0", kernel.O_PATH, kernel.RESOLVE_NO_MAGICLINKS)
        assert error.value.errno == errno.ELOOP
    finally:
        os.close(own)


def test_other_mount_is_refused(tree: int, tmp_path: Path) -> None:
    with support.mounted(tmp_path / "dir", "-t", "tmpfs", "none"):
        for path in (b"dir", b"dir/."):
            with pytest.raises(OSError, match="openat2") as error:
                kernel.stat_beneath(tree, path)
            assert error.value.errno == errno.EXDEV
        fd = kernel.openat2(tree, b"dir", kernel.O_PATH, kernel.REACH_MOUNT)
        os.close(fd)


def test_last_symlink_is_itself(tree: int) -> None:
    facts = kernel.stat_beneath(tree, b"to-file")
    assert facts.ino == os.stat("to-file", dir_fd=tree, follow_symlinks=False).st_ino


def test_fds_are_closed_on_exec(tree: int) -> None:
    for fd in (
        kernel.open_tree(tree, b"", kernel.AT_EMPTY_PATH | kernel.OPEN_TREE_CLOEXEC),
        kernel.openat2(tree, b"dir", kernel.O_PATH, 0),
    ):
        assert not os.get_inheritable(fd)
        os.close(fd)


def test_clone_mount(tree: int, tmp_path: Path) -> None:
    """The clone is another mount of the same files, with attributes of its own."""
    clone = support.clone_mount(tree)
    try:
        kernel.mount_setattr(clone, kernel.MOUNT_ATTR_RDONLY, 0)
        assert kernel.fstat(clone).mnt_id != kernel.fstat(tree).mnt_id
        assert kernel.fstatfs(clone).flags & os.ST_RDONLY
        with pytest.raises(OSError, match="openat2") as error:
            kernel.open_beneath(clone, b"dir/file", os.O_RDWR)
        assert error.value.errno == errno.EROFS
    finally:
        os.close(clone)
    (tmp_path / "dir" / "file").write_text("still writable")


def test_fstatfs(tmp_path: Path, directory: int) -> None:
    assert kernel.fstatfs(directory).fsid == os.statvfs(tmp_path).f_fsid
    proc = os.open("/proc", kernel.O_PATH)
    assert kernel.fstatfs(proc).magic == kernel.PROC_SUPER_MAGIC
    os.close(proc)


def test_handle_leads_back(tree: int) -> None:
    file, facts = kernel.open_beneath(tree, b"dir/file", kernel.O_PATH)
    try:
        try:
            handle = kernel.name_to_handle(file)
            again = kernel.open_by_handle(tree, handle, kernel.O_PATH)
        except (PermissionError, OSError) as error:
            pytest.skip(f"no handles here: {error}")
        assert kernel.fstat(again).ino == facts.ino
        os.close(again)
    finally:
        os.close(file)


def test_handle_wants_a_mount_fd_that_is_no_o_path(tree: int, tmp_path: Path) -> None:
    """open_by_handle_at(2) answers EBADF, whatever its manual lets hope."""
    mount = os.open(tmp_path, kernel.O_PATH)
    try:
        handle = kernel.name_to_handle(tree)
        with pytest.raises(OSError, match="open_by_handle_at") as error:
            kernel.open_by_handle(mount, handle, kernel.O_PATH)
    finally:
        os.close(mount)
    assert error.value.errno in (errno.EBADF, errno.EPERM)


def test_handle_that_is_too_long(tree: int) -> None:
    with pytest.raises(OSError, match="open_by_handle_at") as error:
        kernel.open_by_handle(tree, (1, bytes(129)), os.O_RDONLY)
    assert error.value.errno == errno.EINVAL


def test_errors_name_the_call() -> None:
    with pytest.raises(OSError, match="statx: Bad file descriptor"):
        kernel.fstat(-1)
    with pytest.raises(OSError, match="fstatfs: Bad file descriptor"):
        kernel.fstatfs(-1)


def test_has_peer(tmp_path: Path) -> None:
    name = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(name)
        server.listen()
        assert not kernel.has_peer(name.encode())
        client.connect(name)
        assert kernel.has_peer(name.encode())
        assert kernel.has_peer(b"/socket")
        assert not kernel.has_peer(b"/sock")
        assert not kernel.has_peer(b"x" * 200)


def test_user_namespace() -> None:
    try:
        fd = kernel.user_namespace(b"0 1000 10\n", b"0 2000 10\n")
    except PermissionError:
        pytest.skip("may not make user namespaces")
    assert os.readlink(f"/proc/self/fd/{fd}").startswith("user:")
    os.close(fd)


def test_user_namespace_with_a_bad_map() -> None:
    before = support.open_fds()
    with pytest.raises(OSError, match="user namespace"):
        kernel.user_namespace(b"nonsense\n", b"0 0 1\n")
    assert support.open_fds() == before


def test_mount_namespaces() -> None:
    try:
        found = list(kernel.mount_namespaces())
    except OSError as error:  # ENOTTY before Linux 6.12
        pytest.skip(f"this kernel (before 6.12) has no walk over mount namespaces: {error}")
    assert len(found) == len(set(found)) >= 1
    root = os.open("/", kernel.O_PATH)
    try:
        assert kernel.mount_in_ns(kernel.mnt_id_unique(root), found[0])
    finally:
        os.close(root)
    assert not kernel.mount_in_ns((1 << 62) + 1, found[0])


def test_attached_id_maps(tmp_path: Path) -> None:
    """Of a mount with an id-map and of one without, in this namespace."""
    (tmp_path / "at").mkdir()
    with support.mounted(tmp_path / "at", "-t", "tmpfs", "none"):
        with support.opened(tmp_path / "at", os.O_PATH) as plain:
            tree = support.clone_mount(plain)
            try:
                assert kernel.attached_id_maps(plain) == ([], [])
                userns = kernel.user_namespace(b"0 70000 1\n", b"0 80000 2\n")
                kernel.mount_setattr(tree, kernel.MOUNT_ATTR_IDMAP, 0, userns)
                os.close(userns)
                kernel.attach(tree, plain)
                found = kernel.attached_id_maps(tree)
            except OSError as error:
                pytest.skip(f"this kernel does not tell id-maps, or makes none: {error}")
            finally:
                os.close(tree)
        subprocess.run(["umount", "--lazy", str(tmp_path / "at")], check=True)
    assert found == ([b"0 70000 1"], [b"0 80000 2"])


def test_fd_of_a_process(tmp_path: Path) -> None:
    """The same open file, and not another one of it."""
    (tmp_path / "file").write_text("content")
    with support.opened(tmp_path / "file") as fd:
        found = kernel.fd_of_process(os.getpid(), fd)
        os.lseek(fd, 3, os.SEEK_SET)
        assert os.lseek(found, 0, os.SEEK_CUR) == 3
        assert not os.get_inheritable(found)
        os.close(found)
        with pytest.raises(OSError, match="pidfd_getfd"):
            kernel.fd_of_process(os.getpid(), 12345)


def test_device_of_a_superblock(tmp_path: Path) -> None:
    with support.opened(tmp_path, os.O_PATH) as fd:
        before = support.open_fds()
        assert kernel.superblock_dev(fd) == support.mount_of(tmp_path).dev
        assert support.open_fds() == before
