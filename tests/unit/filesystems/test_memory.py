"""Filesystems in memory: saved with what tasks can reach, and made anew as they were."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from criu_detached import kernel
from criu_detached.dump.describe.new_mount import NewMount
from criu_detached.dump.filesystems.memory import Memory
from criu_detached.dump.filesystems.memory_roots import locate
from criu_detached.dump.observe.classify import Classifier
from criu_detached.dump.observe.directories import climb
from criu_detached.dump.open_file import OpenFile
from criu_detached.errors import DetachedError
from criu_detached.images.datafile import NAME as DATA
from criu_detached.images.datafile import DataFileReader, open_data
from criu_detached.images.record_reader import Records, read_records
from criu_detached.images.records import (
    BindSource,
    File,
    Filesystem,
    Inode,
    Mount,
    Node,
)
from criu_detached.kernel.fds import Fd
from criu_detached.restore.context import ProcessFds
from criu_detached.restore.filesystems.fill import MAX_OPEN, fill
from criu_detached.restore.filesystems.memory import make_memory, set_limits

from .. import support
from ..dump.stand_ins import StandInContext
from ..support import memory_record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached._kernel import FileFacts

WHOLE = Mount(bind_source=BindSource(path=b"."))  # a mount of all of it


class Ground:
    """A detached mount of a filesystem in memory, and an image directory."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self.path = path
        self.stack = stack
        (path / "images").mkdir()
        self.images = os.open(path / "images", os.O_RDONLY)
        stack.callback(os.close, self.images)
        self.proc = os.open("/proc", os.O_PATH)
        stack.callback(os.close, self.proc)
        self.point = path / "point"
        self.point.mkdir()
        self.classifier = Classifier()

    def begin(self, restricted: bool = False) -> tuple[StandInContext, Memory]:
        """A dump that meets the root of the filesystem, which no attached mount shows."""
        context = StandInContext(self.images)
        context.criu.in_user_namespace = restricted
        file = OpenFile.of(self.root)
        new = NewMount(file, self.classifier.classify(file).statmount)
        return context, Memory(1, new, context)

    @contextmanager
    def detached(self, fs_type: str, options: str) -> Iterator[Path]:
        """A filesystem to be filled; then it is detached, and ``root`` is an fd of its root."""
        arguments = ["-t", fs_type, *(["-o", options] if options else []), "unit"]
        with support.mounted(self.point, *arguments):
            yield self.point
            self.root = os.open(self.point, os.O_RDONLY)
            self.stack.callback(os.close, self.root)

    def save(
        self,
        *names: str,
        restricted: bool = False,
        socket_in: bytes = b"",
        watched: bool = False,
    ) -> Records:
        """Save files of the filesystem as a dump does that meets them in this order."""
        context, memory = self.begin(restricted)
        for name in names:
            with support.opened(Path(f"/proc/self/fd/{self.root}/{name}"), os.O_RDONLY) as fd:
                file = OpenFile.of(fd)
                memory.save(file, name.encode(), WHOLE)
                if file.is_directory and not watched:
                    memory.save_whole(fd, b".", WHOLE)
        if socket_in:
            memory.needs_directory(socket_in)
        assert list(memory.finish()) == []
        context.records.flush()
        return read_records(self.images)

    def restore(self, records: Records, roots: tuple[bytes, ...] = ()) -> Path:
        """Make the filesystem anew; returns where it is seen."""
        (filesystem,) = records.filesystems.values()
        return self.make(filesystem, records.nodes.get(1, []), roots)

    def make(
        self, filesystem: Filesystem, nodes: list[Node], roots: tuple[bytes, ...] = ()
    ) -> Path:
        """Make a filesystem with some files."""
        reader = None
        if (self.path / "images" / DATA).exists():
            data = open_data(self.images)
            self.stack.callback(os.close, data)
            reader = DataFileReader(data)
        tree = make_memory(filesystem)
        self.stack.callback(os.close, tree)
        fill(tree, nodes, list(roots), ProcessFds(self.proc, reader))
        set_limits(filesystem, tree)
        return Path(f"/proc/self/fd/{tree}")


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    """The ground; nothing stays open but the images, and the working directory is the same."""
    if os.geteuid():
        pytest.skip("needs root")
    before, here = support.open_fds(), Path.cwd()
    with ExitStack() as stack:
        yield Ground(tmp_path, stack)
    images = {fd for fd, link in support.open_fds().items() if "/images/" in link}
    assert support.open_fds().keys() - images == before.keys() - images
    assert Path.cwd() == here


def paths_of(records: Records) -> list[bytes]:
    """The paths of the nodes, in their order."""
    return [node.path for node in records.nodes.get(1, [])]


@pytest.mark.parametrize("fs_type", ["tmpfs", "ramfs"])
def test_round_trip(ground: Ground, fs_type: str) -> None:
    with ground.detached(fs_type, "") as top:
        support.make_files(top)
        (top / "empty").mkdir(mode=0o700)
        (top / "second").hardlink_to(top / "dir/file")
        os.chown(top / "dir", 5, 6)
        os.utime(top / "dir/file", ns=(-1, 1_000_000_001))
        os.utime(top / "dir", ns=(3, 4))
        names = support.names_in(top)
    new = ground.restore(ground.save("."))
    assert {name.split("/point")[1] for name in names} == {
        name.split(f"/{new.name}")[1] for name in support.names_in(new)
    }
    assert (new / "dir/file").stat().st_ino == (new / "second").stat().st_ino
    assert (new / "dir/file").stat().st_mtime_ns == 1_000_000_001
    facts = (new / "dir").stat()
    assert (facts.st_uid, facts.st_gid, facts.st_mtime_ns) == (5, 6, 4)
    assert (new / "file").read_text() == "content"
    assert os.readlink(new / "link") == "dir/file"


def test_files_alone(ground: Ground) -> None:
    """What no task can reach is not saved."""
    with ground.detached("tmpfs", "") as top:
        support.make_files(top)
    records = ground.save("dir/file")
    assert paths_of(records) == [b"dir/file"]
    new = ground.restore(records)
    assert [path.name for path in new.rglob("*")] == ["dir", "file"]


def test_watched_directory(ground: Ground) -> None:
    """Nothing is reached through a watch, so nothing that is in it is saved."""
    with ground.detached("tmpfs", "") as top:
        support.make_files(top)
        (top / "dir").chmod(0o711)
    records = ground.save("dir", watched=True)
    assert paths_of(records) == [b"dir"]
    new = ground.restore(records)
    assert [path.name for path in new.rglob("*")] == ["dir"]
    assert stat.S_IMODE((new / "dir").stat().st_mode) == 0o711


def test_each_once(ground: Ground) -> None:
    """Files that are held, and met again in the tree, by this name and by another."""
    with ground.detached("tmpfs", "") as top:
        (top / "a").write_text("content")
        (top / "b").hardlink_to(top / "a")
        (top / "c").hardlink_to(top / "a")
    records = ground.save("b", "b", "c", ".", ".")
    nodes = {node.path: node.same_as for node in records.nodes[1]}
    assert nodes == {b"b": b"", b".": b"", b"a": b"b", b"c": b"b"}
    assert len(records.nodes[1]) == 4
    assert (ground.restore(records) / "a").stat().st_nlink == 3


def test_position_is_left(ground: Ground) -> None:
    """The content of a held file is read through the very fd, for a lease may be on it."""
    with ground.detached("tmpfs", "") as top:
        (top / "file").write_text("content")
    _, memory = ground.begin()
    with support.opened(Path(f"/proc/self/fd/{ground.root}/file"), os.O_RDWR) as fd:
        os.lseek(fd, 3, os.SEEK_SET)
        memory.save(OpenFile.of(fd), b"file", WHOLE)
        assert os.lseek(fd, 0, os.SEEK_CUR) == 3
    assert list(memory.finish()) == []


@pytest.mark.parametrize(
    ("held", "path", "deleted"),
    [
        ([], b"gone", False),  # no task can see that it is
        (["dir/file"], b"gone", False),
        (["."], b".", False),
        (["."], b"dir", False),
        (["."], b"dir/gone", True),
        (["."], b"dir/file", True),  # a file has the place of the directory
    ],
)
def test_directory_of_socket(ground: Ground, held: list[str], path: bytes, deleted: bool) -> None:
    with ground.detached("tmpfs", "") as top:
        (top / "dir").mkdir()
        (top / "dir" / "file").touch()
    if not deleted:
        ground.save(*held, socket_in=path)
        return
    with pytest.raises(DetachedError, match=r"socket is bound in .* deleted"):
        ground.save(*held, socket_in=path)


@pytest.mark.parametrize("kind", ["device", "program", "other"])
def test_restricted(ground: Ground, kind: str) -> None:
    """Nothing in it may give a task of a user namespace what it has not."""
    with ground.detached("tmpfs", "") as top:
        if kind == "device":
            os.mknod(top / "it", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        else:
            (top / "it").touch()
            (top / "it").chmod(0o4755 if kind == "program" else 0o755)
    if kind == "other":
        assert paths_of(ground.save(".", restricted=True)) == [b".", b"it"]
        return
    with pytest.raises(DetachedError, match=f"it of a filesystem in memory is a {kind}"):
        ground.save(".", restricted=True)


@pytest.mark.parametrize("options", ["size=1m,nr_inodes=20", "size=0", "nr_inodes=0", ""])
def test_limits(ground: Ground, options: str) -> None:
    with ground.detached("tmpfs", options):
        pass
    before = os.fstatvfs(ground.root)
    after = os.statvfs(ground.restore(ground.save(".")))
    assert (after.f_blocks, after.f_files) == (before.f_blocks, before.f_files)


def test_limits_reached_exactly(ground: Ground) -> None:
    """Room to spare while it is filled is gone at the end."""
    with ground.detached("tmpfs", "size=64k,nr_inodes=4") as top:
        (top / "full").write_bytes(os.urandom(64 << 10))
        (top / "a").mkdir()
        (top / "b").mkdir()
    records = ground.save(".")
    new = ground.restore(records)
    with pytest.raises(OSError, match="No space"):
        (new / "one more").touch()
    (filesystem,) = records.filesystems.values()
    filesystem.options = [b"size=4096"]
    with pytest.raises(DetachedError, match=r"can.t make a tmpfs as it was .*size"):
        ground.make(filesystem, records.nodes[1])


def test_read_only(ground: Ground) -> None:
    """It is filled first."""
    node = Node(filesystem=1, path=b"file", mode=stat.S_IFREG | 0o644, inode=Inode(size=3))
    new = ground.make(memory_record(1, options="ro"), [node])
    assert (new / "file").read_bytes() == bytes(3)
    with pytest.raises(OSError, match="Read-only"):
        (new / "other").touch()


def test_directories_that_have_to_be_there(ground: Ground) -> None:
    new = ground.make(memory_record(1), [], (b"a/b", b"c", b"."))
    assert sorted(str(path.relative_to(new)) for path in new.rglob("*")) == ["a", "a/b", "c"]


def test_more_directories_than_are_kept_open(ground: Ground) -> None:
    paths = [b"%d/%d" % (number % 7, number) for number in range(3 * MAX_OPEN)]
    nodes = [Node(path=path, mode=stat.S_IFDIR | 0o755, inode=Inode()) for path in paths]
    nodes += [
        Node(path=path + b"/file", mode=stat.S_IFREG | 0o600, inode=Inode()) for path in paths
    ]
    new = ground.make(memory_record(1), nodes)
    assert len(list(new.glob("*/*/file"))) == len(paths)


def test_unknown_option(ground: Ground) -> None:
    with pytest.raises(DetachedError, match=r"can.t make a tmpfs .*: .*nonsense"):
        make_memory(memory_record(1, options="nonsense=1"))


REGULAR = stat.S_IFREG | 0o644


@pytest.mark.parametrize(
    ("node", "why"),
    [
        (Node(path=b"../x", mode=REGULAR, inode=Inode()), "invalid path"),
        (Node(path=b"/x", mode=REGULAR, inode=Inode()), "invalid path"),
        (Node(path=b"a//x", mode=REGULAR, inode=Inode()), "invalid path"),
        (Node(path=b"", mode=REGULAR, inode=Inode()), "invalid path"),
        (Node(path=b"x\0y", mode=REGULAR, inode=Inode()), "invalid path"),
        (Node(path=b"x", mode=REGULAR, same_as=b"../y"), "invalid path"),
        (Node(path=b"x", mode=stat.S_IFDIR, same_as=b"y"), "directory with two names"),
        (Node(path=b"x", mode=REGULAR), "no inode"),
        (Node(path=b"x", mode=0o644, inode=Inode()), "invalid mode"),
        (Node(path=b"x", mode=stat.S_IFLNK, inode=Inode()), "invalid target"),
        (Node(path=b"x", mode=REGULAR, inode=Inode(size=5, data_at=8, data_size=5)), "content"),
        (Node(path=b".", mode=REGULAR, inode=Inode()), "can't fill"),
        (Node(path=b"x", mode=REGULAR, same_as=b"y"), "can't fill"),
    ],
    ids=lambda value: None if isinstance(value, str) else repr(value.path),
)
def test_records_that_no_dump_writes(ground: Ground, node: Node, why: str) -> None:
    with pytest.raises(DetachedError, match=why):
        ground.make(memory_record(1), [node])


def test_symlinks_are_not_followed(ground: Ground) -> None:
    """A directory of one record is a symlink of another."""
    outside = ground.path / "outside"
    outside.mkdir()
    (outside / "file").touch()
    way = Node(path=b"way", mode=stat.S_IFLNK, inode=Inode(target=os.fsencode(outside)))
    below = Node(path=b"way/evil", mode=REGULAR, inode=Inode())
    link = Node(path=b"evil", mode=REGULAR, same_as=b"way/file")
    for evil in (below, link):
        with pytest.raises(DetachedError, match="can't fill"):
            ground.make(memory_record(1), [way, evil])
    assert [path.name for path in outside.iterdir()] == ["file"]
    assert (outside / "file").stat().st_nlink == 1


def name_of(fd: int) -> tuple[bytes, bool]:
    """How a dump reads the link of a file."""
    name = locate(OpenFile.of(fd))
    return name.path, name.deleted


def test_names_that_look_deleted(ground: Ground) -> None:
    """They are told from those that are."""
    with ground.detached("tmpfs", "") as top:
        for name in ("x", "x (deleted)", "gone", "lost"):
            (top / name).touch()
        (top / "dir (deleted)").mkdir()
        (top / "kept").hardlink_to(top / "lost")
        names = ["x", "x (deleted)", "dir (deleted)", "gone", "lost"]
        fds = [ground.stack.enter_context(support.opened(top / name)) for name in names]
        (top / "gone").unlink()
        (top / "lost").unlink()
    assert [name_of(fd) for fd in fds] == [
        (b"x", False),
        (b"x (deleted)", False),
        (b"dir (deleted)", False),
        (b"gone", True),
        (b"lost", True),
    ]


def test_climb_stays_on_the_mount(ground: Ground) -> None:
    """Of an attached one too, such as one that is locked to the mount above it."""
    with ground.detached("tmpfs", "") as top:
        (top / "a/b").mkdir(parents=True)
        attached = climb(Fd(os.open(top / "a/b", os.O_PATH)))
    assert kernel.fstat(attached).ino == kernel.fstat(ground.root).ino
    os.close(attached)
    detached = climb(Fd(os.open("a/b", os.O_PATH, dir_fd=ground.root)))
    assert kernel.fstat(detached).ino == kernel.fstat(ground.root).ino
    os.close(detached)


def test_climb_from_what_was_moved_away(tmp_path: Path) -> None:
    """It is not beneath the root of its mount any more."""
    for name in ("mnt", "source/a/b", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    with support.detached(tmp_path / "mnt", tmp_path / "source/a") as root:
        moved = os.open("b", os.O_PATH, dir_fd=root)
        (tmp_path / "source/a/b").rename(tmp_path / "elsewhere/b")
        before = support.open_fds()
        with pytest.raises(OSError, match="No such file"):
            climb(Fd(moved))
        assert set(before) - set(support.open_fds()) == {moved}


@pytest.fixture
def one_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inode numbers repeat: here all files have one."""
    read = kernel.FileStat.__init__

    def read_all_but_number(self: kernel.FileStat, found: FileFacts) -> None:
        read(self, found)
        self.ino = 7

    monkeypatch.setattr(kernel.FileStat, "__init__", read_all_but_number)


@pytest.mark.parametrize("fs_type", ["tmpfs", "ramfs"])
def test_repeated_numbers(ground: Ground, one_number: None, fs_type: str) -> None:
    """Each file comes back as itself, with its names and no others."""
    names = ["a", "b", "dir/c"]
    with ground.detached(fs_type, "") as top:
        (top / "dir/empty").mkdir(parents=True)
        for name in names:
            (top / name).write_text(name)
            (top / f"{name} too").hardlink_to(top / name)
        (top / "alone").write_text("alone")
    new = ground.restore(ground.save("dir/c", "b", ".", "b too"))
    assert (new / "dir/empty").is_dir()
    for name in names:
        assert (new / name).read_text() == name
        assert (new / name).samefile(new / f"{name} too")
        assert (new / name).stat().st_nlink == 2
    assert (new / "alone").read_text() == "alone"


@pytest.mark.parametrize("fs_type", ["tmpfs", "ramfs"])
@pytest.mark.parametrize("whole", [True, False])
def test_deleted_with_a_repeated_number(
    ground: Ground, one_number: None, fs_type: str, whole: bool
) -> None:
    """Its other name is that of the very file; if that one is not saved, it has none."""
    with ground.detached(fs_type, "") as top:
        for name in ("a", "b", "c"):
            (top / name).write_text(name)
            (top / f"{name} too").hardlink_to(top / name)
    context, memory = ground.begin()
    seen = Path(f"/proc/self/fd/{ground.root}")
    with support.opened(seen / "a") as fd, support.opened(seen / "b") as gone:
        memory.save(OpenFile.of(fd), b"a", WHOLE)
        (seen / "b").unlink()
        memory.save_later(OpenFile.of(gone), File(path=b"b"))
    if whole:
        memory.save_whole(ground.root, b".", WHOLE)
    (ghost,) = memory.finish()
    assert ghost.alias == (b"b too" if whole else b"")
    assert (ghost.inode is None) == whole
    context.records.flush()
    records = read_records(ground.images)
    assert set(paths_of(records)) == (
        {b".", b"a", b"a too", b"b too", b"c", b"c too"} if whole else {b"a"}
    )


@pytest.mark.parametrize("fs_type", ["tmpfs", "ramfs"])
def test_name_of_a_deleted_file_was_met_first(
    ground: Ground, one_number: None, fs_type: str
) -> None:
    """A task has it on another mount, by the name that is left."""
    with ground.detached(fs_type, "") as top:
        for name in ("a", "b"):
            (top / name).write_text(name)
        (top / "c").hardlink_to(top / "b")
    _, memory = ground.begin()
    seen = Path(f"/proc/self/fd/{ground.root}")
    with support.opened(seen / "b") as gone, support.opened(seen / "c") as left:
        (seen / "b").unlink()
        with support.opened(seen / "a") as other:
            memory.save(OpenFile.of(other), b"a", WHOLE)
        memory.save(OpenFile.of(left), b"c", WHOLE)
        memory.save_later(OpenFile.of(gone), File(path=b"b"))
    (ghost,) = memory.finish()
    assert ghost.alias == b"c"


def test_climb_with_repeated_numbers(ground: Ground, one_number: None) -> None:
    with ground.detached("ramfs", "") as top:
        (top / "a/b").mkdir(parents=True)
    with climb(Fd(os.open("a/b", os.O_PATH, dir_fd=ground.root))) as found:
        assert kernel.is_same_inode(found, ground.root)
