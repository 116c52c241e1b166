"""A dump with a stand-in for CRIU: what is recorded, what is left, what is refused."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from criu_detached import kernel
from criu_detached.criu import log
from criu_detached.dump.describe.source_mount import SourceMount
from criu_detached.dump.dump import Dump
from criu_detached.dump.open_file import OpenFile
from criu_detached.errors import DetachedError
from criu_detached.filesystems.superblock import boot_id
from criu_detached.images import datafile
from criu_detached.images.record_reader import read_records
from criu_detached.images.recordfile import NAME
from criu_detached.images.records import BIND_SOURCE, File, Mount, Time
from criu_detached.kernel.fds import Fd

from .. import support
from ..support import KnownFiles, StandInHost


class Ground:
    """A lazily unmounted bind of a directory, CRIU, and an image directory."""

    def __init__(self, path: Path, known_files: KnownFiles, stack: ExitStack) -> None:
        self.source = path / "source"
        (self.source / "dir").mkdir(parents=True)
        (self.source / "file").write_text("content")
        (self.source / "link").symlink_to("file")
        os.mkfifo(self.source / "fifo")
        for name in ("images", "mnt", "two"):
            (path / name).mkdir()
        self.path = path
        self.stack = stack
        self.images = os.open(path / "images", os.O_RDONLY | os.O_DIRECTORY)
        stack.callback(os.close, self.images)
        self.host = StandInHost(self.images, known_files)
        log.set_writer(self.host.criu.log)
        self.root = self.detach(path / "mnt", self.source)
        self.dump = Dump(self.host)

    def detach(self, mountpoint: Path, source: Path) -> int:
        """Another detached mount."""
        return self.stack.enter_context(support.detached(mountpoint, source))

    def open(self, name: str, flags: int = os.O_PATH | os.O_NOFOLLOW, root: int = -1) -> int:
        """Open a file on the detached mount."""
        fd = os.open(name, flags, dir_fd=self.root if root < 0 else root)
        self.stack.callback(os.close, fd)
        return fd

    def take(self, fd: int) -> bool:
        """CRIU reads the link of a file."""
        return self.dump.link_read(fd, os.readlink(b"/proc/self/fd/%d" % fd), kernel.fstat(fd))

    def refused(self, fd: int, why: str) -> None:
        """The file is refused with one line."""
        with pytest.raises(DetachedError, match=why) as error:
            self.take(fd)
        assert len(str(error.value).splitlines()) == 1


@pytest.fixture
def ground(tmp_path: Path, known_files: KnownFiles) -> Iterator[Ground]:
    """The ground, and an end to all that is open on it."""
    with ExitStack() as stack:
        yield Ground(tmp_path, known_files, stack)


def test_records(ground: Ground) -> None:
    names = ["file", "dir", "link", "fifo"]
    fds = [ground.open(name) for name in names]
    assert all(ground.take(fd) for fd in [*fds, ground.root])
    records = read_records(ground.images)
    assert records.header.boot_id == boot_id()
    facts = kernel.fstat(ground.root)
    (mount,) = records.mounts.values()
    attached = support.mount_of(ground.source)
    assert (mount.mnt_id, mount.origin, mount.root_type) == (
        facts.mnt_id,
        BIND_SOURCE,
        stat.S_IFDIR,
    )
    assert (mount.uid_map, mount.gid_map) == ([], [])
    source = mount.bind_source
    assert source is not None
    assert (source.mnt_id, source.in_namespace) == (attached.mnt_id, 0)
    shown = Path(os.fsdecode(source.mountpoint)) / os.fsdecode(source.path)
    assert shown == ground.source
    assert {file.path for file in records.files.values()} == {b".", *map(str.encode, names)}
    file = records.files[facts.mnt_id, (ground.source / "file").stat().st_ino]
    found = (ground.source / "file").stat()
    assert (file.dev, file.mode, file.rdev) == (found.st_dev, found.st_mode, found.st_rdev)


def test_file_is_recorded_once(ground: Ground) -> None:
    for _ in range(3):
        assert ground.take(ground.open("file"))
    assert len(read_records(ground.images).files) == 1


def test_renamed_meanwhile(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """Just after the file was seen where it should be."""
    refusal_at = SourceMount._refusal_at

    def and_rename(mount: SourceMount, root: Fd, path: bytes, file: OpenFile) -> str:
        mount.maps_known = False  # as before Linux 7.0
        refusal = refusal_at(mount, root, path, file)
        (ground.source / "file").rename(ground.source / "moved")
        return refusal

    monkeypatch.setattr(SourceMount, "_refusal_at", and_rename)
    ground.refused(ground.open("file"), "while it is dumped")


def test_two_mounts(ground: Ground) -> None:
    other = ground.detach(ground.path / "two", ground.source / "dir")
    assert ground.take(ground.root)
    assert ground.take(other)
    records = read_records(ground.images)
    assert len(records.mounts) == 2
    assert {file.path for file in records.files.values()} == {b"."}


def test_mount_of_one_file(ground: Ground) -> None:
    (ground.path / "single").touch()
    fd = ground.detach(ground.path / "single", ground.source / "file")
    assert ground.take(fd)
    records = read_records(ground.images)
    mount: Mount
    file: File
    (mount,), (file,) = records.mounts.values(), records.files.values()
    assert mount.root_type == stat.S_IFREG
    assert file.path == b"."
    assert mount.bind_source is not None
    assert mount.bind_source.path.endswith(b"source/file")


def test_attributes(ground: Ground) -> None:
    with support.mounted(ground.path / "two", "--bind", "-o", "ro,noexec", str(ground.source)):
        fd = ground.open(str(ground.path / "two"))
    assert ground.take(fd)
    (mount,) = read_records(ground.images).mounts.values()
    wanted = kernel.MOUNT_ATTR_RDONLY | kernel.MOUNT_ATTR_NOEXEC
    other = kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV
    assert mount.attr & (wanted | kernel.MOUNT_ATTR_NOSYMFOLLOW) == wanted
    assert mount.attr & other in (0, other)  # those of the filesystem of the tests


def test_what_is_not_detached_is_left(ground: Ground) -> None:
    """And then there is no record file."""
    fd = ground.open(str(ground.source / "file"))
    assert not ground.take(fd)
    assert not (ground.path / "images" / NAME).exists()


def test_deleted(ground: Ground) -> None:
    """Its record has what it takes to make it anew, its content is in the data file."""
    fd = ground.open("file", os.O_RDONLY)
    os.utime(fd, ns=(5, -1))
    (ground.source / "file").unlink()
    facts = os.fstat(fd)
    assert ground.take(fd)
    records = read_records(ground.images)
    assert records.files == {}
    (ghost,) = records.ghosts.values()
    assert ghost.file is not None and ghost.inode is not None
    assert (ghost.file.path, ghost.file.mode) == (b"file", facts.st_mode)
    assert (ghost.unnamed, ghost.alias) == (0, b"")
    assert (ghost.inode.uid, ghost.inode.gid, ghost.inode.size) == (facts.st_uid, facts.st_gid, 7)
    assert (ghost.inode.atime, ghost.inode.mtime) == (
        Time(nsec=5),
        Time(sec=(1 << 64) - 1, nsec=999_999_999),
    )
    data = (ground.path / "images" / datafile.NAME).read_bytes()
    assert data[ghost.inode.data_at :][: ghost.inode.data_size].endswith(b"content")


def test_deleted_file_is_recorded_once(ground: Ground) -> None:
    fds = [ground.open("file", flags) for flags in (os.O_RDONLY, os.O_RDWR, os.O_PATH)]
    (ground.source / "file").unlink()
    assert all(ground.take(fd) for fd in fds)
    assert len(read_records(ground.images).ghosts) == 1


def test_deleted_name(ground: Ground) -> None:
    fd = ground.open("file", os.O_RDONLY)
    os.link(ground.source / "file", ground.source / "dir" / "second")
    (ground.source / "file").unlink()
    assert ground.take(ground.root)
    assert ground.take(fd)
    (ghost,) = read_records(ground.images).ghosts.values()
    assert ghost.inode is None
    shown = Path(os.fsdecode(support.mount_of(ground.source).mountpoint))
    assert shown / os.fsdecode(ghost.alias) == ground.source / "dir" / "second"
    assert not (ground.path / "images" / datafile.NAME).exists()


@pytest.mark.parametrize("first", ["file", "second"])
def test_both_names_of_which_one_is_deleted(ground: Ground, first: str) -> None:
    """It is one file, whichever name is met first."""
    os.link(ground.source / "file", ground.source / "second")
    fds = {name: ground.open(name, os.O_RDONLY) for name in ("file", "second")}
    (ground.source / "file").unlink()
    assert ground.take(ground.root)
    assert ground.take(fds.pop(first))
    assert ground.take(*fds.values())
    records = read_records(ground.images)
    assert len(records.files) + len(records.ghosts) == 2  # with the root


def test_name_that_ends_as_the_kernel_marks_deleted_ones(ground: Ground) -> None:
    (ground.source / "file").rename(ground.source / "file (deleted)")
    assert ground.take(ground.open("file (deleted)"))
    records = read_records(ground.images)
    assert [file.path for file in records.files.values()] == [b"file (deleted)"]
    assert records.ghosts == {}


def test_deleted_root(ground: Ground) -> None:
    """The path that it had, in a source that shows what was above it."""
    fd = ground.detach(ground.path / "two", ground.source / "dir")
    (ground.source / "dir").rmdir()
    assert ground.take(fd)
    records = read_records(ground.images)
    (mount,), (ghost,) = records.mounts.values(), records.ghosts.values()
    assert mount.root_deleted
    assert mount.bind_source is not None and ghost.file is not None
    assert mount.bind_source.path.endswith(b"source/dir")
    assert ghost.file.path == b"."


def test_deleted_root_that_is_there_again(ground: Ground) -> None:
    """A mount of what is there now does not show what was above the deleted one."""
    root = ground.path / "two"
    with ExitStack() as mounts:
        mounts.enter_context(support.mounted(root, "-t", "tmpfs", "none"))
        (root / "dir").mkdir()
        fd = ground.detach(ground.path / "mnt", root / "dir")
        (root / "dir").rmdir()
        (root / "dir").mkdir()
        mounts.enter_context(support.mounted(ground.path / "mnt", "--bind", str(root / "dir")))
        mounts.enter_context(support.mounted(root, "--bind", str(ground.source)))
        ground.refused(fd, "no attached mount shows")


def test_deleted_in_a_user_namespace(ground: Ground) -> None:
    """Without handles an fd with O_NOFOLLOW could not be opened again."""
    fd = ground.open("file", os.O_RDONLY | os.O_NOFOLLOW)
    by_path = ground.open("file", os.O_PATH | os.O_NOFOLLOW)
    (ground.source / "file").unlink()
    ground.host.criu.in_user_namespace = True
    assert ground.take(by_path)
    ground.refused(fd, "O_NOFOLLOW .* in a user namespace")


@pytest.mark.parametrize("place", ["option", "file"])
def test_limit_of_deleted_files(ground: Ground, place: str) -> None:
    (ground.source / "file").write_bytes(b"x" * (1 << 20) + b"y")
    fd = ground.open("file", os.O_RDONLY)
    (ground.source / "file").unlink()
    ground.refused(fd, "over the limit of 1048576: write .ghost-limit 2M. to")
    ground.dump = Dump(ground.host)
    (ground.path / "images" / NAME).unlink()
    if place == "option":
        ground.host.criu.options = [b"--criu_detached.ghost-limit=2M"]
    else:
        (ground.path / "images" / "criu-detached.conf").write_text("ghost-limit 2M\n")
    assert ground.take(fd)


def test_covered_in_the_source(ground: Ground) -> None:
    assert ground.take(ground.root)
    fd = ground.open("dir")
    with support.mounted(ground.source / "dir", "-t", "tmpfs", "none"):
        ground.refused(fd, "another mount covers .*source/dir")


def test_socket_file(ground: Ground) -> None:
    """Sockets come another way."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(ground.source / "socket"))
    ground.refused(ground.open("socket"), "file of a unix socket")


def test_bound_socket(ground: Ground) -> None:
    """One record for the sockets of one name: a listening one and what it has accepted."""
    name = bytes(ground.source / "socket")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)
    fd = ground.open("socket")
    answers = [ground.dump.socket_bound(fd, name, kernel.fstat(fd)) for _ in range(2)]
    (record,) = read_records(ground.images).bound_sockets.values()
    assert (record.name, record.directory, record.deleted) == (name, b".", 0)
    for answer in answers:
        assert answer is not None
        assert (answer.number, answer.stand_in, answer.deleted) == (record.id, -1, 0)


def test_bound_socket_whose_name_is_gone(ground: Ground) -> None:
    """Its mount is described without the file."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(ground.source / "dir" / "socket"))
        fd = ground.open("dir/socket")
        (ground.source / "dir" / "socket").unlink()
        answer = ground.dump.socket_bound(fd, b"socket", kernel.fstat(fd))
    assert answer is not None and answer.deleted
    (record,) = read_records(ground.images).bound_sockets.values()
    assert (record.name, record.directory, record.deleted) == (b"socket", b"dir", 1)


def test_bound_socket_of_an_attached_mount(ground: Ground) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(ground.source / "socket"))
    fd = ground.open(str(ground.source / "socket"))
    assert ground.dump.socket_bound(fd, b"socket", kernel.fstat(fd)) is None


def test_terminal(ground: Ground) -> None:
    try:
        os.mknod(ground.source / "tty", stat.S_IFCHR | 0o666, os.makedev(5, 0))
    except PermissionError:
        pytest.skip("may not make device nodes")
    """It is a file as any other, but for the ends of pseudo terminals."""
    assert ground.take(ground.open("tty"))


def test_no_source(ground: Ground) -> None:
    with support.mounted(ground.path / "two", "-t", "tmpfs", "none"):
        fd = ground.open(str(ground.path / "two"))
    ground.refused(fd, "in memory alone")
    assert not (ground.path / "images" / NAME).exists()


def test_images_that_cannot_be_written(ground: Ground) -> None:
    (ground.path / "images" / NAME).touch()
    ground.refused(ground.root, f"can't create {NAME}")


def test_stream(ground: Ground) -> None:
    """CRIU is connected to the streamer then."""
    name = str(ground.path / "streamer-capture.sock")
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(name)
        server.listen()
        client.connect(name)
        ground.refused(ground.root, "--stream")


def test_device_of_plugins(ground: Ground) -> None:
    """With what CRIU does not keep of it: flags and position."""
    fd = ground.open("file", os.O_RDWR | os.O_APPEND)
    os.lseek(fd, 3, os.SEEK_SET)
    assert ground.dump.ext_file(fd, 7, kernel.fstat(fd))
    (record,) = read_records(ground.images).ext_files.values()
    assert (record.id, record.pos) == (7, 3)
    assert record.flags & (os.O_ACCMODE | os.O_APPEND) == os.O_RDWR | os.O_APPEND
    assert record.ino == (ground.source / "file").stat().st_ino


def test_device_that_is_not_detached(ground: Ground) -> None:
    fd = ground.open("/dev/null", os.O_RDWR)
    assert not ground.dump.ext_file(fd, 7, kernel.fstat(fd))


def test_watch_of_a_symlink(ground: Ground) -> None:
    ground.stack.enter_context(support.inotify(ground.source / "link", follow=False))
    with pytest.raises(DetachedError, match="CRIU cannot restore a watch of a symlink"):
        ground.dump.find_watched()


def test_no_fd_stays_open_but_the_images_and_the_roots(ground: Ground) -> None:
    fd = ground.open("file")
    before = set(support.open_fds())
    assert ground.take(fd)
    first = set(support.open_fds()) - before
    assert len(first) == 3  # the record file, the mount's root, its bind source
    assert ground.take(ground.open("dir", os.O_RDONLY))
    assert len(set(support.open_fds()) - before - first) == 1  # the file itself
    (ground.source / "doomed").write_text("content")
    doomed = ground.open("doomed", os.O_RDONLY)
    (ground.source / "doomed").unlink()
    before = set(support.open_fds())
    assert ground.take(doomed)
    assert len(set(support.open_fds()) - before) == 1  # the data file
