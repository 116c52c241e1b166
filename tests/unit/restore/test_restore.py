"""A restore with a stand-in for CRIU: what is recorded is opened, all else is refused."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from criu_detached import kernel
from criu_detached.criu import log
from criu_detached.errors import DetachedError
from criu_detached.filesystems.superblock import boot_id, superblock_of
from criu_detached.images import datafile
from criu_detached.images.datafile import DataFileWriter
from criu_detached.images.record_writer import RecordWriter
from criu_detached.images.recordfile import NAME
from criu_detached.images.records import (
    BIND_SOURCE,
    FORMAT,
    BindSource,
    ExtFile,
    File,
    Ghost,
    Handle,
    Header,
    Inode,
    Mount,
    Superblock,
)
from criu_detached.restore.restore import Restore

from .. import support
from ..support import KnownFiles, StandInHost

MNT_ID = 300


class Ground:
    """A bind source with files in it, an image directory, and CRIU."""

    def __init__(self, path: Path, known_files: KnownFiles) -> None:
        self.path = path
        self.tree = path / "source" / "tree"
        self.tree.mkdir(parents=True)
        support.make_files(self.tree)
        (path / "images").mkdir()
        self.images = os.open(path / "images", os.O_RDONLY | os.O_DIRECTORY)
        self.host = StandInHost(self.images, known_files, root=path)
        self.records: list[File | ExtFile | Ghost] = []
        self.children: list[Mount] = []
        self.writer = DataFileWriter(self.images)
        self.header = Header(format=FORMAT, boot_id=boot_id())
        self.mount = self.mount_record(self.tree, in_namespace=False)

    def close(self) -> None:
        self.host.close()
        os.close(self.images)

    def mount_record(self, root: Path, *, in_namespace: bool) -> Mount:
        """A mount whose root is here; the stand-in's namespace has the ground for its root."""
        attached = support.mount_of(root)
        at = self.path if in_namespace else Path(os.fsdecode(attached.mountpoint))
        fd = os.open(root, os.O_PATH)
        superblock = superblock_of(fd, attached.fs_type)
        os.close(fd)
        return Mount(
            mnt_id=MNT_ID,
            origin=BIND_SOURCE,
            root=b"/tree",
            root_type=stat.S_IFMT(root.stat().st_mode),
            superblock=superblock,
            bind_source=BindSource(
                mnt_id=attached.mnt_id,
                in_namespace=int(in_namespace),
                mountpoint=b"/" if in_namespace else attached.mountpoint,
                path=os.fsencode(root.relative_to(at)),
            ),
        )

    def is_inside(self) -> bool:
        """Whether the bind source is in a restored namespace."""
        return self.mount.bind_source is not None and bool(self.mount.bind_source.in_namespace)

    def file(self, name: str, **changes: object) -> bytes:
        """Record a file, with something changed; returns the name that CRIU opens it by."""
        record = support.file_record(self.tree, name, **{"mnt_id": MNT_ID, **changes})
        self.records.append(record)
        return b"ile[%x:%x]" % (record.mnt_id, record.ino)

    def ghost(self, path: str, mode: int = stat.S_IFREG | 0o640, content: bytes = b"") -> bytes:
        """Record a deleted file that is made anew; returns the name that CRIU opens it by."""
        ino = 1000 + len(self.records)
        inode = Inode(uid=1234, gid=5678, size=len(content))
        if content:
            (self.path / "content").write_bytes(content)
            with support.opened(self.path / "content") as fd:
                inode.data_at, inode.data_size = self.writer.add(fd, len(content))
            (self.path / "content").unlink()
        rdev = os.makedev(1, 5) if stat.S_ISCHR(mode) else 0
        file = File(mnt_id=MNT_ID, ino=ino, mode=mode, path=path.encode(), rdev=rdev)
        self.records.append(Ghost(file=file, inode=inode))
        return b"ile[%x:%x]" % (MNT_ID, ino)

    def restore(self) -> Restore:
        """Write the records and start a restore."""
        writer = RecordWriter(self.images, self.header)
        for mount in (self.mount, *self.children):
            writer.mount(mount)
        for record in self.records:
            if isinstance(record, File):
                writer.file(record)
            elif isinstance(record, Ghost):
                writer.ghost(record)
            else:
                writer.ext_file(record)
        return Restore(self.host)

    def open(self, name: bytes, flags: int = os.O_RDONLY) -> int:
        """Open a file as a task would, and see that no other fd is left open in it."""
        restore = self.restore()
        before = set(support.open_fds()) | set(self.host.kept())
        try:
            fd = restore.open(name, flags)
        except DetachedError:
            assert set(support.open_fds()) <= before | set(self.host.kept())
            assert not self.host.shared.held
            raise
        assert set(support.open_fds()) - before - set(self.host.kept()) == {fd}
        assert not self.host.shared.held
        return fd


@pytest.fixture
def ground(tmp_path: Path, known_files: KnownFiles) -> Iterator[Ground]:
    """Where mounts may be cloned."""
    made = Ground(tmp_path, known_files)
    fd = os.open(tmp_path, os.O_PATH)
    os.close(support.clone_mount(fd))
    os.close(fd)
    log.set_writer(made.host.criu.log)
    yield made
    made.close()


@pytest.fixture(params=["outside", "inside"])
def placed(ground: Ground, request: pytest.FixtureRequest) -> Ground:
    """The bind source is the host's, or in a restored namespace."""
    ground.mount = ground.mount_record(ground.tree, in_namespace=request.param == "inside")
    return ground


def refused(ground: Ground, *parts: str) -> None:
    """The restore does not start, and says why in one line."""
    with pytest.raises(DetachedError) as error:
        ground.restore()
    text = str(error.value)
    assert len(text.splitlines()) == 1
    assert text.isprintable()
    for part in parts:
        assert part in text


def is_tree_fd(fd: int) -> bool:
    """Whether the mount of an fd ends with it: it can be cloned, for it is anonymous."""
    try:
        os.close(kernel.clone_mount(fd))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("flags", [os.O_PATH, os.O_PATH | os.O_NOFOLLOW, os.O_RDONLY])
@pytest.mark.parametrize("anonymous", [0, 1])
def test_fd_of_a_tree(placed: Ground, anonymous: int, flags: int) -> None:
    """Of an anonymous mount the root's O_PATH fd is the fd of the tree."""
    key = placed.file(".")
    placed.mount.anonymous = anonymous
    restore = placed.restore()
    fds = [restore.open(key, flags), restore.open(key, flags)]
    for kept in [*placed.host.fds.inherited.values(), *placed.host.fds.stored]:
        os.close(kept)
    placed.host.fds.inherited.clear()
    placed.host.fds.stored.clear()
    assert len({kernel.fstat(fd).mnt_id for fd in fds}) == 1
    given = bool(anonymous) and flags == os.O_PATH
    assert (is_tree_fd(fds[0]), is_tree_fd(fds[1])) in {(given, given), (False, False)}
    for fd in fds:
        assert not os.get_inheritable(fd)
        os.close(fd)


@pytest.fixture
def branched(placed: Ground) -> Ground:
    """A tree with the same source mounted once more in it, at dir."""
    placed.mount.anonymous = 1
    child = placed.mount_record(placed.tree, in_namespace=placed.is_inside())
    child.mnt_id, child.anonymous = MNT_ID + 1, 1
    child.parent, child.place = MNT_ID, b"dir"
    placed.children.append(child)
    return placed


def test_branches(branched: Ground) -> None:
    """The mount in the tree is where it was, and its files are on it."""
    keys = [branched.file("file"), branched.file("dir/file", mnt_id=MNT_ID + 1)]
    top = branched.file(".")
    restore = branched.restore()
    before = set(support.open_fds()) - set(branched.host.kept())
    try:
        lower, upper = (restore.open(key, os.O_RDONLY) for key in keys)
    except DetachedError as error:
        if "6.15" in str(error):
            pytest.skip("this kernel (before 6.15) attaches nothing to an anonymous mount")
        raise
    tree = restore.open(top, os.O_PATH)
    found = os.stat("dir/dir/file", dir_fd=tree)
    assert kernel.fstat(lower).mnt_id != kernel.fstat(upper).mnt_id
    assert found.st_ino == kernel.fstat(upper).ino
    there = os.open("dir/dir/file", os.O_PATH, dir_fd=tree)
    assert kernel.fstat(there).mnt_id == kernel.fstat(upper).mnt_id
    opened = {lower, upper, tree, there}
    assert set(support.open_fds()) - set(branched.host.kept()) - before == opened
    assert not branched.host.shared.held
    for fd in opened:
        os.close(fd)


def test_place_is_gone(branched: Ground) -> None:
    key = branched.file("file", mnt_id=MNT_ID + 1)
    (branched.tree / "dir" / "file").unlink()
    (branched.tree / "dir").rmdir()
    with pytest.raises(DetachedError, match=f"mount {MNT_ID + 1} at dir"):
        branched.open(key)


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("parent", MNT_ID + 1, "attached to none"),
        ("parent", 77, "attached to none"),
        ("place", b"", "attached to none"),
        ("anonymous", 0, "attached to none"),
        ("origin", 2, "filesystem that is not there"),
        ("place", b"../x", "invalid path"),
        ("place", b"a\0b", "invalid path"),
    ],
)
def test_hostile_branch(branched: Ground, field: str, value: object, why: str) -> None:
    setattr(branched.children[0], field, value)
    refused(branched, why)


def test_branch_that_is_far_away(branched: Ground) -> None:
    """A task attaches what is from outside; nothing is attached by a task outside."""
    other = branched.mount_record(branched.tree, in_namespace=not branched.is_inside())
    branched.children[0].bind_source = other.bind_source
    if branched.is_inside():
        test_branches(branched)
    else:
        refused(branched, "far apart")


@pytest.mark.parametrize(("name", "flags"), support.OPENED)
def test_open(placed: Ground, name: str, flags: int) -> None:
    key = placed.file(name)
    fd = placed.open(key, flags)
    assert os.path.samestat(os.fstat(fd), (placed.tree / name).lstat())
    assert kernel.fstat(fd).mnt_id != support.mount_of(placed.tree).mnt_id
    os.close(fd)


def test_mount_is_realised_once(placed: Ground) -> None:
    names = [placed.file("file"), placed.file("dir"), placed.file("fifo")]
    restore = placed.restore()
    fds = [restore.open(name, os.O_PATH) for name in names]
    assert len({kernel.fstat(fd).mnt_id for fd in fds}) == 1
    for fd in fds:
        os.close(fd)


def test_nothing_is_attached(placed: Ground) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    os.close(placed.open(placed.file("file")))
    assert Path("/proc/self/mountinfo").read_text() == before


@pytest.mark.parametrize(
    "flags", [os.O_RDONLY, os.O_RDWR | os.O_APPEND, os.O_PATH, os.O_RDWR | os.O_NOFOLLOW]
)
def test_mount_of_one_file(ground: Ground, flags: int) -> None:
    root = ground.tree / "file"
    ground.mount = ground.mount_record(root, in_namespace=False)
    fd = os.open(root, os.O_RDONLY)
    try:
        kind, data = kernel.name_to_handle(fd)
    except OSError:
        pytest.skip("no handles here")
    finally:
        os.close(fd)
    key = ground.file("file", path=b".", handle=Handle(type=kind, bytes=data))
    fd = ground.open(key, flags)
    assert os.path.samestat(os.fstat(fd), root.stat())
    os.close(fd)


def test_mount_of_one_file_without_handle(ground: Ground) -> None:
    ground.mount = ground.mount_record(ground.tree / "file", in_namespace=False)
    key = ground.file("file", path=b".")
    with pytest.raises(DetachedError, match="has no handle"):
        ground.open(key, os.O_RDONLY | os.O_NOFOLLOW)


def test_device_that_was_left_to_plugins(ground: Ground) -> None:
    """It is opened with its flags."""
    os.mknod(ground.tree / "zero", stat.S_IFCHR | 0o600, os.makedev(1, 5))
    ground.file("zero")
    inode = (ground.tree / "zero").stat().st_ino
    ground.records.append(ExtFile(id=7, flags=os.O_RDWR | os.O_APPEND, mnt_id=MNT_ID, ino=inode))
    restore = ground.restore()
    assert restore.ext_file(8) is None
    fd = restore.ext_file(7)
    assert fd is not None
    assert os.read(fd, 2) == b"\0\0"
    assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND
    assert kernel.fstat(fd).ino == inode
    os.close(fd)


def test_external_file_that_is_no_device(ground: Ground) -> None:
    ground.file("file")
    inode = (ground.tree / "file").stat().st_ino
    ground.records.append(ExtFile(id=7, flags=os.O_RDWR, mnt_id=MNT_ID, ino=inode))
    with pytest.raises(DetachedError, match="no device"):
        ground.restore().ext_file(7)


@pytest.mark.parametrize("flag", [os.O_TRUNC, os.O_CREAT, os.O_EXCL])
def test_flags_that_change_the_filesystem(ground: Ground, flag: int) -> None:
    name = ground.file("file")
    with pytest.raises(DetachedError, match="flags"):
        ground.restore().open(name, os.O_RDWR | flag)
    assert (ground.tree / "file").read_bytes() != b""


@pytest.mark.parametrize(
    "path", [b"..", b"../file", b"a/../b", b"", b"/file", b"a//b", b"a/", b"./a", b"a\0b"]
)
def test_hostile_file_path(placed: Ground, path: bytes) -> None:
    placed.file("file", path=path)
    refused(placed, "path")


def test_file_on_an_unknown_mount(ground: Ground) -> None:
    ground.file("file", mnt_id=MNT_ID + 1)
    refused(ground, NAME, "mount")


def test_file_twice(ground: Ground) -> None:
    ground.file("file")
    ground.file("file")
    refused(ground, NAME, "twice")


Change = Callable[[Mount], None]


def unknown_attribute(mount: Mount) -> None:
    mount.attr = 1 << 40


def unknown_origin(mount: Mount) -> None:
    mount.origin = 77


def no_source(mount: Mount) -> None:
    mount.bind_source = None


def leaves_source(mount: Mount) -> None:
    assert mount.bind_source is not None
    mount.bind_source.path += b"/../.."


def leaves_namespace(mount: Mount) -> None:
    assert mount.bind_source is not None
    mount.bind_source.mountpoint += b"/.."


def zero_byte(mount: Mount) -> None:
    assert mount.bind_source is not None
    mount.bind_source.path += b"\0x"


def other_filesystem(mount: Mount) -> None:
    mount.superblock = Superblock(fs_type=b"nonsense\n", magic=1)


def bad_id_map(mount: Mount) -> None:
    mount.uid_map = [b"0 0 1\n1 1 1"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (unknown_attribute, "unknown attributes"),
        (unknown_origin, "unknown origin 77"),
        (no_source, "origin"),
        (leaves_source, "invalid path"),
        (leaves_namespace, "invalid path"),
        (zero_byte, "invalid path"),
        (other_filesystem, "another filesystem"),
        (bad_id_map, "id-map"),
    ],
)
def test_hostile_mount(ground: Ground, change: Change, why: str) -> None:
    ground.file("file")
    change(ground.mount)
    refused(ground, why)


def test_hostile_path_that_is_absolute(ground: Ground) -> None:
    assert ground.mount.bind_source is not None
    ground.mount.bind_source.path = b"/etc"
    refused(ground, "cannot be opened")


@pytest.mark.parametrize("name", [b"ile[0:0]", b"ile[]", b"ile[x:y]", b"ile[12c:", b"ile[\n"])
def test_file_without_record(ground: Ground, name: bytes) -> None:
    ground.file("file")
    with pytest.raises(DetachedError, match="no record of ile") as error:
        ground.open(name)
    assert str(error.value).isprintable()


def test_other_file_type_is_there(placed: Ground) -> None:
    key = placed.file("fifo", mode=stat.S_IFREG | 0o644)
    with pytest.raises(DetachedError, match="fifo on mount 300 is a FIFO, it was a regular file"):
        placed.open(key, os.O_RDWR)


def test_other_device_is_there(placed: Ground) -> None:
    key = placed.file("file", rdev=os.makedev(8, 1))
    with pytest.raises(DetachedError, match="is device 0:0, it was 8:1"):
        placed.open(key)


def test_other_inode_is_there(ground: Ground) -> None:
    key = ground.file("file", ino=(ground.tree / "file").stat().st_ino + (1 << 40))
    with pytest.raises(DetachedError, match="file on mount 300 is another file"):
        ground.open(key)


def test_other_inode_after_a_boot(ground: Ground) -> None:
    """A filesystem need not keep its inode numbers then."""
    ground.header.boot_id = b"other"
    assert ground.mount.superblock is not None
    ground.mount.superblock.dev = 0
    ground.mount.superblock.fsid ^= 1
    ground.mount.superblock.uuid = b""
    os.close(ground.open(ground.file("file", ino=5)))


def test_file_is_gone(placed: Ground) -> None:
    key = placed.file("file")
    (placed.tree / "file").unlink()
    with pytest.raises(DetachedError, match="can't open file on mount 300: No such file"):
        placed.open(key)


def test_source_in_the_namespace_is_gone(ground: Ground) -> None:
    """That shows when the first task needs it; the next one does not wait for it."""
    ground.mount = ground.mount_record(ground.tree, in_namespace=True)
    key = ground.file("file")
    restore = ground.restore()
    ground.tree.rename(ground.path / "moved")
    for _ in range(2):
        with pytest.raises(DetachedError, match=r"bind source .*cannot be opened"):
            restore.open(key, os.O_RDONLY)
        assert not ground.host.shared.held


@pytest.mark.parametrize(
    ("flags", "access"),
    [
        (os.O_RDONLY, os.O_RDONLY),
        (os.O_RDWR | os.O_APPEND, os.O_RDWR),
        (os.O_RDWR | os.O_NOFOLLOW, os.O_RDWR),
        (os.O_PATH, os.O_PATH),
        (os.O_PATH | os.O_NOFOLLOW, os.O_PATH),
    ],
)
def test_deleted_file(placed: Ground, flags: int, access: int) -> None:
    before = support.names_in(placed.tree)
    fd = placed.open(placed.ghost("dir/doomed", content=b"content"), flags)
    assert fcntl.fcntl(fd, fcntl.F_GETFL) & (os.O_ACCMODE | os.O_PATH) == access
    assert Path(f"/proc/self/fd/{fd}").read_bytes() == b"content"
    assert os.readlink(f"/proc/self/fd/{fd}") == "/dir/doomed (deleted)"
    found = os.fstat(fd)
    assert (found.st_nlink, found.st_uid, found.st_gid) == (0, 1234, 5678)
    assert support.names_in(placed.tree) == before
    os.close(fd)


def test_deleted_files_are_made_once(placed: Ground) -> None:
    """Whoever opens them, and however often; they are on one mount with all others."""
    names = [placed.ghost("doomed"), placed.ghost("sub", stat.S_IFDIR | 0o700)]
    other = placed.file("file")
    restore = placed.restore()
    fds = [restore.open(name, os.O_RDONLY) for name in [*names, *names, other]]
    assert os.path.samestat(os.fstat(fds[0]), os.fstat(fds[2]))
    assert os.path.samestat(os.fstat(fds[1]), os.fstat(fds[3]))
    assert len({kernel.fstat(fd).mnt_id for fd in fds}) == 1
    for fd in fds:
        os.close(fd)


def test_deleted_device_that_was_left_to_plugins(ground: Ground) -> None:
    ground.ghost("zero", stat.S_IFCHR | 0o600)
    ground.records.append(ExtFile(id=7, flags=os.O_RDWR, mnt_id=MNT_ID, ino=1000))
    fd = ground.restore().ext_file(7)
    assert fd is not None
    assert os.read(fd, 2) == b"\0\0"
    os.close(fd)


@pytest.mark.parametrize("damage", ["missing", "cut", "magic"])
def test_damaged_data_file(placed: Ground, damage: str) -> None:
    """Found before there is any task, and before anything is made."""
    before = support.names_in(placed.tree)
    placed.ghost("doomed", content=b"content")
    path = placed.path / "images" / datafile.NAME
    if damage == "missing":
        path.unlink()
    else:
        data = path.read_bytes()
        path.write_bytes(data[:-1] if damage == "cut" else b"x" + data[1:])
    refused(placed, datafile.NAME)
    assert support.names_in(placed.tree) == before


def test_data_file_is_not_needed_without_contents(placed: Ground) -> None:
    os.close(placed.open(placed.ghost("doomed")))


@pytest.mark.parametrize("path", ["..", "../a", "/a", "a/../b", "", "a\0b"])
def test_hostile_path_of_a_deleted_file(placed: Ground, path: str) -> None:
    placed.ghost(path)
    refused(placed, "path")


def test_deleted_root_of_a_mount_that_has_one(placed: Ground) -> None:
    """Its attributes would go to what is there."""
    placed.ghost(".", stat.S_IFDIR | 0o700)
    refused(placed, NAME, "root")


def test_no_records(ground: Ground) -> None:
    with pytest.raises(DetachedError, match=f"{NAME} is missing"):
        Restore(ground.host)


def test_terminals(ground: Ground) -> None:
    """Each end is opened by the name that CRIU makes of the other one's."""
    with support.mounted(ground.tree, "-t", "devpts", "-o", "ptmxmode=0666", "devpts"):
        ground.mount = ground.mount_record(ground.tree, in_namespace=False)
        name = ground.file("ptmx")
        restore = ground.restore()
        master = restore.open(name, os.O_RDWR | os.O_NOCTTY)
        number = support.unlock_terminal(master).encode()
        slave = restore.open(name + b"pts/" + number, os.O_RDWR | os.O_NOCTTY)
        os.write(slave, b"out")
        assert os.read(master, 10) == b"out"
        with pytest.raises(DetachedError, match="no terminal has a name"):
            restore.open(name + b"other", os.O_RDWR)
        os.close(slave)
        os.close(master)


@pytest.mark.parametrize("others", [False, True])
def test_terminals_without_a_source(ground: Ground, others: bool) -> None:
    """That of slaves alone may be gone: CRIU replaces the terminal of a shell job."""
    name = ground.file("file", mode=stat.S_IFCHR | 0o620, rdev=os.makedev(136, 1))
    if others:
        ground.file("dir/file")
    assert ground.mount.bind_source is not None
    ground.mount.bind_source.path = b"gone"
    if others:
        with pytest.raises(DetachedError, match="gone cannot be opened"):
            ground.restore()
        return
    restore = ground.restore()
    with pytest.raises(DetachedError, match="gone cannot be opened"):
        restore.open(name, os.O_RDWR)
