"""Names of unix sockets: where they start on a mount, and how they are made to lead there."""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from criu_detached import kernel
from criu_detached.dump.kinds.sockets import describe_socket
from criu_detached.errors import DetachedError
from criu_detached.images.record_reader import read_records
from criu_detached.images.record_writer import RecordWriter
from criu_detached.images.records import FORMAT, RECREATED, BoundSocket, Header, Mount
from criu_detached.kernel.fds import Fd
from criu_detached.paths import Name
from criu_detached.restore.sockets import SocketNames
from criu_detached.restore.trees import Realised, Trees

from .. import support
from ..support import KnownFiles, StandInHost

ROOT = Path(__file__).resolve().parents[3]
CLONE_NEWUSER = 0x10000000


@pytest.mark.parametrize(
    ("name", "path", "directory"),
    [
        (b"/mnt/socket", b"socket", b"."),
        (b"/mnt/tree/socket", b"tree/socket", b"tree"),
        (b"/elsewhere/socket", b"tree/moved/socket", b"tree/moved"),
        (b"socket", b"socket", b"."),
        (b"./socket", b"tree/socket", b"tree"),
        (b"dir/socket", b"tree/dir/socket", b"tree"),
        (b"dir/socket", b"dir/socket", b"."),
    ],
)
def test_directory(name: bytes, path: bytes, directory: bytes) -> None:
    record = describe_socket(name, Name(path, False), Mount(mnt_id=7))
    assert record == BoundSocket(mnt_id=7, name=name, directory=directory)


def test_name_that_is_gone() -> None:
    record = describe_socket(b"socket", Name(b"dir/socket", True), Mount(mnt_id=7))
    assert (record.directory, record.deleted) == (b"dir", 1)


@pytest.mark.parametrize(
    ("name", "path", "attr", "why"),
    [
        (b"socket", b"renamed", 0, "renamed"),
        (b"/mnt/socket", b"renamed", 0, "renamed"),
        (b"link/socket", b"dir/socket", 0, "symlink"),
        (b"a/../socket", b"socket", 0, r"\.\."),
        (b"/mnt/../socket", b"socket", 0, r"\.\."),
        (b"/mnt/socket", b".", 0, "one file"),
        (b"a" * 108, b"" + b"a" * 108, 0, "longer"),
        (b"socket", b"socket", kernel.MOUNT_ATTR_RDONLY, "read-only"),
    ],
)
def test_refused(name: bytes, path: bytes, attr: int, why: str) -> None:
    with pytest.raises(DetachedError, match=why):
        describe_socket(name, Name(path, False), Mount(mnt_id=7, attr=attr))


class StandInTrees(Trees):
    """The one mount that sockets are on."""

    def __init__(self, tree: Path) -> None:
        self.tree = tree

    def open(self, mnt_id: int) -> Realised:
        assert mnt_id == 7
        return Realised(Fd.open(os.fspath(self.tree), os.O_PATH), True, [])


class Ground:
    """A directory that stands for a mount, the names of a restore, and CRIU."""

    def __init__(self, path: Path, known_files: KnownFiles) -> None:
        (path / "images").mkdir()
        (path / "tree" / "dir").mkdir(parents=True)
        for directory in (path / "tree", path / "tree" / "dir"):
            directory.chmod(0o777)
        self.tree = path / "tree"
        self.trees = StandInTrees(self.tree)
        self.images = os.open(path / "images", os.O_RDONLY)
        self.host = StandInHost(self.images, known_files)

    def close(self) -> None:
        self.host.close()
        os.close(self.images)

    def names(self, name: bytes, directory: bytes, *, deleted: bool = False) -> SocketNames:
        """A restore with the record of one socket."""
        writer = RecordWriter(self.images, Header(format=FORMAT))
        writer.mount(Mount(mnt_id=7))
        record = BoundSocket(id=1, mnt_id=7, name=name, directory=directory, deleted=int(deleted))
        writer.bound_socket(record)
        return SocketNames(self.host, read_records(self.images))


@pytest.fixture
def ground(tmp_path: Path, known_files: KnownFiles) -> Iterator[Ground]:
    """The ground, and an end to all that is open on it."""
    made = Ground(tmp_path, known_files)
    yield made
    made.close()


@pytest.mark.parametrize("as_user", [False, True], ids=["root", "user namespace"])
@pytest.mark.parametrize(
    ("name", "directory", "made"),
    [
        (b"socket", b"dir", "dir/socket"),
        (b"./dir/socket", b".", "dir/socket"),
        (b"/absent/deep//./point/socket", b"dir", "dir/socket"),
        (b"/proc/self/fd/5/socket", b".", "socket"),
        (b"/socket", b"dir", "dir/socket"),
    ],
)
def test_name_leads_to_the_mount(
    ground: Ground, name: bytes, directory: bytes, made: str, as_user: bool
) -> None:
    """A task that is told to follow a name binds there, whatever the path leads to elsewhere."""
    if os.geteuid():
        pytest.skip("needs root")
    for parent in (ground.tree, *ground.tree.parents):
        if parent != Path("/") and as_user:
            parent.chmod(parent.stat().st_mode | 0o5)
    names = ground.names(name, directory)
    assert ground.host.criu.socket_names == {1: (name, False)}
    go_read, go_write = os.pipe()
    ready_read, ready_write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            if as_user:
                ctypes.CDLL(None).unshare(CLONE_NEWUSER)
                os.write(ready_write, b"!")
                os.read(go_read, 1)
            before = support.open_fds()
            names.enter(1, ground.trees)
            server = socket.socket(socket.AF_UNIX)
            server.bind(name)
            assert server.getsockname().encode() == name
            server.close()
            os.chroot(".")
            os._exit(0 if len(before) else 1)
        finally:
            os._exit(1)
    if as_user:
        os.read(ready_read, 1)
        for map_name in ("uid_map", "gid_map"):
            Path(f"/proc/{pid}/{map_name}").write_text("0 100000 65536\n")
        os.write(go_write, b"!")
    _, status = os.waitpid(pid, 0)
    for fd in (go_read, go_write, ready_read, ready_write):
        os.close(fd)
    assert status == 0
    assert (ground.tree / made).is_socket()


def test_no_fd_stays_open(ground: Ground) -> None:
    if os.geteuid():
        pytest.skip("needs root")
    names = ground.names(b"/absent/point/socket", b"dir")
    pid = os.fork()
    if not pid:
        try:
            before = os.listdir("/proc/self/fd")
            listing = os.open("/proc/self/fd", os.O_RDONLY)
            names.enter(1, ground.trees)
            os._exit(len(os.listdir(listing)) - len(before) - 1)
        finally:
            os._exit(99)
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize(
    ("name", "directory"),
    [
        (b"", b"."),
        (b"dir/", b"."),
        (b"../socket", b"dir"),
        (b"/a/../socket", b"."),
        (b"so\0cket", b"."),
        (b"a" * 109, b"."),
        (b"socket", b".."),
        (b"socket", b"/dir"),
        (b"socket", b"dir/../.."),
        (b"socket", b"di\0r"),
        (b"socket", b""),
    ],
)
def test_bad_record(ground: Ground, name: bytes, directory: bytes) -> None:
    with pytest.raises(DetachedError, match="socket record has the invalid"):
        ground.names(name, directory)


@pytest.mark.parametrize(("name", "directory"), [(b"socket", b"out"), (b"out/socket", b".")])
def test_way_out(ground: Ground, name: bytes, directory: bytes) -> None:
    """Someone has put a symlink on the way: it is not followed."""
    (ground.tree / "out").symlink_to("/")
    names = ground.names(name, directory)
    with pytest.raises(DetachedError, match="is not there"):
        names.enter(1, ground.trees)


def test_directory_before_there_is_a_task(ground: Ground) -> None:
    """What cannot be bound is found out while the mount is realised."""
    names = ground.names(b"dir/inner/socket", b".")
    with support.opened(ground.tree) as tree:
        before = support.open_fds()
        names.check_directories(Mount(mnt_id=8), tree)
        with pytest.raises(DetachedError, match=r"directory .* is not there"):
            names.check_directories(Mount(mnt_id=7), tree)
        (ground.tree / "dir" / "inner").mkdir()
        names.check_directories(Mount(mnt_id=7), tree)
        assert support.open_fds() == before


@pytest.mark.parametrize("name", [b"/elsewhere/socket", b"dir/socket", b"./dir/socket"])
@pytest.mark.parametrize("deleted", [False, True])
def test_attributes(ground: Ground, name: bytes, deleted: bool) -> None:
    """On a filesystem that was made anew the new file has those of the old one."""
    if os.geteuid():
        pytest.skip("needs root")
    start = ground.tree / "dir" if name.startswith(b"/") else ground.tree
    path = ground.tree / "dir" / "socket"
    if not deleted:
        os.mknod(path, stat.S_IFSOCK)
        os.setxattr(path, "trusted.name", b"value")
        os.utime(path, ns=(1, 2))
    os.utime(path.parent, ns=(3, 4))
    names = ground.names(name, b"dir" if name.startswith(b"/") else b".", deleted=deleted)
    with support.opened(ground.tree) as tree:
        names.check_directories(Mount(mnt_id=7, origin=RECREATED), tree)
    path.unlink(missing_ok=True)
    os.mknod(path, stat.S_IFSOCK)
    here = Path.cwd()
    os.chdir(start)
    try:
        names.bound(1)
        names.bound(2)  # of no such record
    finally:
        os.chdir(here)
    assert path.parent.stat().st_mtime_ns == 4
    if not deleted:
        assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (1, 2)
        assert os.getxattr(path, "trusted.name") == b"value"


def test_no_record(ground: Ground) -> None:
    with pytest.raises(DetachedError, match="no record"):
        ground.names(b"socket", b".").enter(2, ground.trees)


@pytest.fixture
def sockets_c(tmp_path: Path) -> ctypes.CDLL:
    """plugin/shim/socket_names.c as a library of its own."""
    if not shutil.which("cc"):
        pytest.skip("needs a C compiler")
    library = tmp_path / "socket_names.so"
    command = ["cc", "-O1", "-shared", "-fPIC", f"-I{ROOT / 'plugin'}", "-o", str(library)]
    subprocess.run([*command, str(ROOT / "plugin" / "shim" / "socket_names.c")], check=True)
    return ctypes.CDLL(str(library))


NOTED, CONFLICT = 0, 1
HERE, THERE, ATTACHED = 1, 2, 0


@pytest.mark.parametrize(
    ("first", "second", "answer"),
    [
        ((b"/a/socket", HERE, False), (b"/a/socket", HERE, False), NOTED),
        ((b"/a/socket", HERE, True), (b"/a/socket", HERE, False), NOTED),
        ((b"/a/socket", ATTACHED, False), (b"/a/socket", ATTACHED, True), NOTED),
        ((b"/a/socket", HERE, False), (b"/a/socket", THERE, False), CONFLICT),
        ((b"/a/socket", ATTACHED, False), (b"/a/socket", HERE, False), CONFLICT),
        ((b"/a/socket", HERE, False), (b"/a/socket", ATTACHED, True), CONFLICT),
        ((b"/a/one", HERE, False), (b"/a/two", THERE, True), NOTED),
        ((b"/a/one", HERE, True), (b"/a//two", THERE, True), CONFLICT),
        ((b"/a/one", HERE, True), (b"/ab/two", THERE, True), NOTED),
        ((b"/one", HERE, True), (b"/two", ATTACHED, True), CONFLICT),
        ((b"socket", HERE, False), (b"socket", ATTACHED, False), NOTED),
    ],
)
def test_names_that_are_mixed_up(
    sockets_c: ctypes.CDLL,
    first: tuple[bytes, int, bool],
    second: tuple[bytes, int, bool],
    answer: int,
) -> None:
    assert sockets_c.socket_name_note(*first) == NOTED
    assert sockets_c.socket_name_note(*second) == answer
    sockets_c.socket_names_reset()
    assert sockets_c.socket_name_note(*second) == NOTED
