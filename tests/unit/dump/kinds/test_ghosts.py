"""From an open file whose name is gone to its record."""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from criu_detached import kernel
from criu_detached.dump.describe import source_mount
from criu_detached.dump.describe.new_mount import NewMount
from criu_detached.dump.describe.source_mount import SourceMount
from criu_detached.dump.describe.sources import Source
from criu_detached.dump.kinds.ghosts import GhostDescriber
from criu_detached.dump.open_file import OpenFile, handle_of
from criu_detached.errors import DetachedError
from criu_detached.images import datafile
from criu_detached.images.datafile import DataFileReader, DataFileWriter
from criu_detached.images.records import (
    BindSource,
    File,
    Ghost,
    Inode,
    Mount,
    Superblock,
    Time,
    Xattr,
)
from criu_detached.kernel.fds import Fd

from ... import support
from ..stand_ins import StandInContext


class Ground:
    """A bind source, and files on it that are to be deleted."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self.stack = stack
        self.source = path / "source"
        (self.source / "dir").mkdir(parents=True)
        self.images = path / "images"
        self.images.mkdir()
        self.directory = stack.enter_context(support.opened(self.images))
        self.options = [b"--criu_detached.ghost-limit=64K"]
        self.in_namespace = False
        self.restricted = False
        self.read_only = False
        self.magic = 0
        self.writer = DataFileWriter(self.directory)

    def open(self, name: str, flags: int = os.O_RDWR | os.O_CREAT, mode: int = 0o600) -> int:
        """Open a file, or make it."""
        fd = os.open(self.source / name, flags, mode)
        self.stack.callback(os.close, fd)
        return fd

    def describe(self, fd: int, path: str | None = None) -> Ghost:
        """Describe a deleted file; no fd is left open but that of the data file."""
        file = OpenFile.of(fd)
        record = File(
            ino=file.stat.ino,
            mode=file.stat.mode,
            path=(path or self.name_of(fd)).encode(),
        )
        context = StandInContext(self.directory)
        context.contents = self.writer
        context.criu.options = self.options
        context.criu.in_user_namespace = self.restricted
        context.criu.id_shift = 100_000, 200_000
        with support.opened(self.source, os.O_PATH) as root, self.mount(file, root) as mount:
            before = set(support.open_fds().values())
            try:
                return GhostDescriber(context).describe(file, record, mount)
            finally:
                new = set(support.open_fds().values()) - before
                assert new <= {str(self.images / datafile.NAME)}

    @contextmanager
    def mount(self, file: OpenFile, root: int) -> Iterator[SourceMount]:
        """A detached mount whose root is deleted, as its source shows it."""
        record = Mount(
            bind_source=BindSource(in_namespace=int(self.in_namespace)),
            superblock=Superblock(magic=self.magic),
        )
        info = support.mount_of(self.source)
        info.super_options = [b"ro" if self.read_only else b"rw"]
        with Source(info, Fd(os.dup(root))) as source:
            mount = SourceMount(NewMount(file, None), record, source, None)
        with mount.source:
            yield mount

    def name_of(self, fd: int) -> str:
        """The path that a deleted file had."""
        link = os.readlink(f"/proc/self/fd/{fd}").removesuffix(" (deleted)")
        return link.removeprefix(f"{self.source}/")

    def refused(self, fd: int, why: str) -> None:
        """Refused with one line."""
        with pytest.raises(DetachedError, match=why) as error:
            self.describe(fd)
        assert len(str(error.value).splitlines()) == 1


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    """The ground, and an end to all that is open on it."""
    with ExitStack() as stack:
        yield Ground(tmp_path, stack)


def inode_of(ghost: Ghost) -> Inode:
    """What a file is made anew from."""
    assert ghost.inode is not None
    assert ghost.alias == b""
    return ghost.inode


def test_regular_file(ground: Ground) -> None:
    fd = ground.open("file")
    os.write(fd, b"content")
    os.ftruncate(fd, 40_000)
    os.setxattr(fd, "trusted.a", b"1\0")
    os.fchown(fd, 12, 34)
    os.utime(fd, ns=(1_500_000_000_000_000_001, -1))
    os.unlink(ground.source / "file")
    ghost = ground.describe(fd)
    assert ghost.file is not None
    assert ghost.file.handle is not None
    assert (ghost.file.path, ghost.unnamed) == (b"file", 0)
    inode = inode_of(ghost)
    assert (inode.uid, inode.gid, inode.size) == (12, 34, 40_000)
    assert inode.atime == Time(sec=1_500_000_000, nsec=1)
    assert inode.mtime == Time(sec=(1 << 64) - 1, nsec=999_999_999)
    assert inode.xattrs == [Xattr(name=b"trusted.a", value=b"1\0")]
    with support.opened(ground.images / datafile.NAME) as data:
        DataFileReader(data).check(inode.data_at, inode.data_size, inode.size)
        assert b"content" in os.pread(data, 1000, inode.data_at)
    assert inode.data_size < 10_000, "the hole was written"


def test_blocks_that_are_not_told(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a server's file they may be zero; its content is saved all the same."""
    fd = ground.open("file")
    os.write(fd, b"content")
    os.unlink(ground.source / "file")
    fstat = os.fstat

    def told(fd: int) -> os.stat_result:
        found = fstat(fd)
        names = ("st_atime_ns", "st_mtime_ns")
        facts = {name: getattr(found, name) for name in names}
        return os.stat_result(tuple(found), {**facts, "st_blocks": 0})

    monkeypatch.setattr(os, "fstat", told)
    inode = inode_of(ground.describe(fd))
    with support.opened(ground.images / datafile.NAME) as data:
        assert b"content" in os.pread(data, inode.data_size, inode.data_at)


@pytest.mark.parametrize("size", [0, 1 << 30])
def test_nothing_but_holes(ground: Ground, size: int) -> None:
    """They need no data file, and do not count."""
    fd = ground.open("file")
    os.ftruncate(fd, size)
    os.unlink(ground.source / "file")
    inode = inode_of(ground.describe(fd))
    assert (inode.size, inode.data_at, inode.data_size) == (size, 0, 0)
    assert os.listdir(ground.images) == []


@pytest.mark.parametrize("flags", [os.O_PATH, os.O_WRONLY, os.O_RDONLY | os.O_NOATIME])
def test_content_whatever_the_flags(ground: Ground, flags: int) -> None:
    """And the access time that is recorded, and the file's own, are those from before."""
    path = ground.source / "file"
    path.write_bytes(b"content")
    os.utime(path, ns=(5, 6))
    fd = ground.open("file", flags)
    path.unlink()
    inode = inode_of(ground.describe(fd))
    assert (inode.atime, inode.data_size) == (Time(nsec=5), 16 + 7)
    assert os.fstat(fd).st_atime_ns == 5


def make_symlink(path: Path) -> None:
    os.symlink(b"to \xff nowhere", path)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (make_symlink, stat.S_IFLNK),
        (os.mkfifo, stat.S_IFIFO),
        (os.mkdir, stat.S_IFDIR),
        (lambda path: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5)), stat.S_IFCHR),
    ],
)
def test_other_kinds(ground: Ground, make: object, kind: int) -> None:
    assert callable(make)
    make(ground.source / "file")
    fd = ground.open("file", os.O_PATH | os.O_NOFOLLOW)
    (os.rmdir if kind == stat.S_IFDIR else os.unlink)(ground.source / "file")
    inode = inode_of(ground.describe(fd))
    assert inode.target == (b"to \xff nowhere" if kind == stat.S_IFLNK else b"")
    assert (inode.size, inode.data_size) == (0, 0)
    assert os.listdir(ground.images) == []


def test_unnamed_file(ground: Ground) -> None:
    """Made with O_TMPFILE: the kernel names it by its inode."""
    fd = ground.open("dir", os.O_TMPFILE | os.O_RDWR)
    ghost = ground.describe(fd)
    assert ghost.unnamed
    assert ghost.file is not None
    assert ghost.file.path == b"dir/#%d" % os.fstat(fd).st_ino


@pytest.mark.parametrize("name", ["#1", "{}", "#{}x", "x#{}"])
def test_file_that_only_looks_unnamed(ground: Ground, name: str) -> None:
    fd = ground.open("file")
    name = name.format(os.fstat(fd).st_ino)
    (ground.source / "file").rename(ground.source / name)
    (ground.source / name).unlink()
    assert not ground.describe(fd).unnamed


def test_unnamed_file_that_got_a_name(ground: Ground) -> None:
    fd = ground.open("dir", os.O_TMPFILE | os.O_RDWR)
    with support.opened(ground.source) as source:
        os.link(f"/proc/self/fd/{fd}", "complete", dst_dir_fd=source, follow_symlinks=True)
    ghost = ground.describe(fd)
    assert (ghost.alias, ghost.inode) == (b"complete", None)


@pytest.fixture(params=["handle", "search"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How another name is found; without handles by a search."""

    def no_handle(fd: int, flags: int = 0) -> tuple[int, bytes]:
        raise OSError(errno.EOPNOTSUPP, "name_to_handle_at")

    name = str(request.param)
    if name == "search":
        monkeypatch.setattr(kernel, "name_to_handle", no_handle)
    return name


def test_other_name(ground: Ground, way: str) -> None:
    """Nothing is made anew then, so there is neither an inode nor a content."""
    fd = ground.open("file")
    os.write(fd, b"x" * 100_000)
    os.link(ground.source / "file", ground.source / "dir" / "other")
    os.unlink(ground.source / "file")
    ghost = ground.describe(fd, "file")
    assert (ghost.alias, ghost.inode) == (b"dir/other", None)
    assert ghost.file is not None
    assert (ghost.file.handle is None) == (way == "search")
    assert os.listdir(ground.images) == []


@pytest.mark.parametrize("name", [".fuse_hidden0000000300000001", ".nfs000000000012a0d900000001"])
def test_name_of_a_server(ground: Ground, name: str) -> None:
    """It is gone with the last fd where a server gave it; elsewhere it is one as any other."""
    fd = ground.open("file")
    os.write(fd, b"content")
    os.link(ground.source / "file", ground.source / name)
    os.unlink(ground.source / "file")
    assert ground.describe(fd, "file").alias == name.encode()
    ground.magic = 0x65735546  # FUSE
    assert inode_of(ground.describe(fd, "file")).data_size
    os.link(ground.source / name, ground.source / "dir" / "lasting")
    assert ground.describe(fd, "file").alias == b"dir/lasting"
    os.rename(ground.source / "dir" / "lasting", ground.source.parent / "elsewhere")
    ground.refused(fd, "the other one that it still has is not to be found")
    (ground.source.parent / "elsewhere").unlink()
    os.rename(ground.source / name, ground.source.parent / "elsewhere")
    ground.refused(fd, "the other one that it still has is not to be found")


def test_other_name_that_is_found_by_a_search_alone(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The handle leads to a name that is gone."""
    fd = ground.open("file")
    os.link(ground.source / "file", ground.source / "dir" / "other")
    os.unlink(ground.source / "file")
    monkeypatch.setattr(source_mount, "open_on", lambda source, handle: Fd(os.dup(fd)))
    assert ground.describe(fd, "file").alias == b"dir/other"


def test_other_name_outside_of_the_source(ground: Ground, way: str) -> None:
    """The handle still leads to it; without one the file cannot be found again."""
    fd = ground.open("file")
    os.link(ground.source / "file", ground.images.parent / "other")
    os.unlink(ground.source / "file")
    if way == "search":
        ground.refused(fd, "the other one that it still has is not to be found")
        return
    ghost = ground.describe(fd, "file")
    assert (ghost.alias, ghost.inode) == (b"", None)
    assert ghost.file is not None
    assert ghost.file.handle is not None


def test_limit(ground: Ground) -> None:
    """What is on disk counts, up to the limit and no more."""
    fd = ground.open("file")
    os.write(fd, b"x" * (64 << 10))
    os.unlink(ground.source / "file")
    assert inode_of(ground.describe(fd)).size == 64 << 10
    os.write(fd, b"y")
    ground.refused(fd, "over the limit of 65536: write .ghost-limit 1M. to")
    ground.options = [b"--criu_detached.ghost-limit=1M"]
    assert inode_of(ground.describe(fd)).size == (64 << 10) + 1


def test_settings_are_read_on_need(ground: Ground) -> None:
    """A malformed one is of no concern where there is no content."""
    ground.options = [b"--criu_detached.ghost-limit=lots"]
    os.mkfifo(ground.source / "fifo")
    fifo = ground.open("fifo", os.O_PATH)
    os.unlink(ground.source / "fifo")
    assert ground.describe(fifo).inode is not None
    fd = ground.open("file")
    os.unlink(ground.source / "file")
    ground.refused(fd, "lots is no size")


def test_read_only_filesystem(ground: Ground) -> None:
    fd = ground.open("file")
    os.unlink(ground.source / "file")
    ground.read_only = True
    ground.refused(fd, "its filesystem is read-only")


def test_no_regular_file_of_a_server(ground: Ground) -> None:
    """It would be gone with the name that it is made with."""
    os.mkfifo(ground.source / "fifo")
    fd = ground.open("fifo", os.O_PATH)
    os.unlink(ground.source / "fifo")
    ground.magic = 0x65735546  # FUSE
    ground.refused(fd, r"no regular file: the server of its filesystem \(FUSE\)")


@pytest.mark.parametrize("in_namespace", [False, True])
def test_owner_in_the_dumped_user_namespace(ground: Ground, in_namespace: bool) -> None:
    """A task in it makes the file, if the bind source is in its namespace; else criu does."""
    fd = ground.open("file")
    os.fchown(fd, 5, 6)
    os.unlink(ground.source / "file")
    ground.in_namespace = in_namespace
    ground.restricted = True
    inode = inode_of(ground.describe(fd))
    assert (inode.uid, inode.gid) == ((100_005, 200_006) if in_namespace else (5, 6))


def make_device(ground: Ground) -> int:
    os.mknod(ground.source / "zero", 0o20600, os.makedev(1, 5))
    return ground.open("zero", os.O_PATH)


def make_acl(ground: Ground) -> int:
    fd = ground.open("file")
    entries = [(1, 6, -1), (2, 4, 1000), (4, 4, -1), (16, 4, -1), (32, 0, -1)]
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    os.setxattr(fd, "system.posix_acl_access", acl)
    return fd


@pytest.mark.parametrize(
    ("make", "why"), [(make_device, "it is a device"), (make_acl, "system.posix_acl_access")]
)
def test_privileges_in_the_dumped_user_namespace(
    ground: Ground, make: Callable[[Ground], int], why: str
) -> None:
    """A task could not make it again: refused, unless criu makes it."""
    fd = make(ground)
    (ground.source / ground.name_of(fd)).unlink()
    ground.restricted = True
    ground.describe(fd)
    ground.in_namespace = True
    with pytest.raises(DetachedError, match=why):
        ground.describe(fd)


def test_full_filesystem(ground: Ground, tmpfs: Path) -> None:
    """The dump fails while it can."""
    ground.images = tmpfs
    ground.writer = DataFileWriter(ground.stack.enter_context(support.opened(tmpfs)))
    fd = ground.open("file")
    os.write(fd, os.urandom(64 << 10))
    os.unlink(ground.source / "file")
    ground.refused(fd, f"can't write {datafile.NAME}: No space left")


def test_handle_of(ground: Ground, way: str) -> None:
    handle = handle_of(ground.directory)
    assert (handle is None) == (way == "search")
