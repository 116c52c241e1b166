"""Lines of mountinfo, as show_mountinfo() of fs/proc_namespace.c writes them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criu_detached.kernel.mountinfo import (
    MountInfo,
    mounts_of_namespace,
    namespaces,
    read_mountinfo,
    unescape,
)

from .. import support


def test_line() -> None:
    mount = MountInfo(
        b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue"
    )
    assert mount.mnt_id == 36
    assert mount.dev == os.makedev(98, 0)
    assert mount.root == b"/mnt1"
    assert mount.mountpoint == b"/mnt2"
    assert mount.options == [b"rw", b"noatime"]
    assert mount.fs_type == b"ext3"
    assert mount.super_options == [b"rw", b"errors=continue"]


@pytest.mark.parametrize(
    "optional", ["", "shared:1 ", "master:1 ", "shared:2 master:1 propagate_from:3 ", "unbindable "]
)
def test_optional_fields(optional: str) -> None:
    mount = MountInfo(f"1 2 0:3 / /a rw {optional}- tmpfs none rw".encode())
    assert (mount.mountpoint, mount.fs_type, mount.super_options) == (b"/a", b"tmpfs", [b"rw"])


def test_empty_source() -> None:
    """mount("", ...) leaves two blanks in a row."""
    mount = MountInfo(b"1 2 0:3 / /a rw - tmpfs  rw,size=4k")
    assert mount.super_options == [b"rw", b"size=4k"]


def test_source_that_is_a_dash() -> None:
    mount = MountInfo(b"1 2 0:3 / /a rw shared:1 - tmpfs - rw")
    assert (mount.fs_type, mount.super_options) == (b"tmpfs", [b"rw"])


@pytest.mark.parametrize("fs_type", ["fuse", "fuse.sshfs", "fuse.a.b"])
def test_subtype(fs_type: str) -> None:
    assert MountInfo(f"1 2 0:3 / /a rw - {fs_type} none rw".encode()).fs_type == b"fuse"


def test_large_device_number() -> None:
    assert MountInfo(b"1 2 4095:1048575 / /a rw - ext4 x rw").dev == os.makedev(4095, 1048575)


@pytest.mark.parametrize("line", [b"", b"1 2 3", b"1 2 0:3 / /a rw tmpfs none rw", b"x 2 0:3 /"])
def test_no_mountinfo(line: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  (of int, index or unpacking)
        MountInfo(line)


@pytest.mark.parametrize(
    ("field", "name"),
    [
        (b"/plain", b"/plain"),
        (rb"/a\040b", b"/a b"),
        (rb"/a\011b\012c\134d\043e", b"/a\tb\nc\\d#e"),
        (rb"\040\040", b"  "),
        (rb"/\134040", rb"/\040"),
        (b"/gr\xc3\xbcn", "/grün".encode()),
    ],
)
def test_unescape(field: bytes, name: bytes) -> None:
    assert unescape(field) == name


@given(st.binary())
def test_unescape_any_name(name: bytes) -> None:
    escaped = b"".join(b"\\%03o" % byte if byte in b" \t\n\\#" else bytes((byte,)) for byte in name)
    assert unescape(escaped) == name


def test_own_mounts() -> None:
    mounts = read_mountinfo()
    assert b"/proc" in [mount.mountpoint for mount in mounts]
    assert [mount.mnt_id for mount in mounts] == [
        mount.mnt_id for mount in read_mountinfo(os.getpid())
    ]


def test_process_that_is_gone() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    with pytest.raises(OSError):  # noqa: PT011  (ENOENT, or ESRCH in between)
        read_mountinfo(child.pid)


@pytest.mark.parametrize("name", ["a b", "a\tb", "a\nb", "a\\b", "a#b", "a\\040b", "grün", "-"])
def test_real_mountpoint(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.mkdir()
    with support.mounted(path, "-t", "tmpfs", "none"):
        assert os.fsencode(path) in [mount.mountpoint for mount in read_mountinfo()]


def test_own_namespace_comes_first() -> None:
    found = list(namespaces())
    inode, pids = found[0]
    assert inode == os.stat("/proc/self/ns/mnt").st_ino
    assert os.getpid() in pids
    assert len({inode for inode, _ in found}) == len(found)


def test_mounts_of_own_namespace() -> None:
    seen = mounts_of_namespace([os.getpid()])
    assert {mount.mnt_id for _, mount in seen} == {mount.mnt_id for mount in read_mountinfo()}
    assert {pid for pid, _ in seen} == {os.getpid()}


def test_namespace_of_processes_that_are_gone() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    assert mounts_of_namespace([child.pid]) == []
