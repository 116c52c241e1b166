"""Deleted files are made anew: as they were, without a name, and without a trace."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from criu_detached import kernel
from criu_detached.errors import DetachedError
from criu_detached.images.datafile import DataFileReader, DataFileWriter, open_data
from criu_detached.images.records import File, Ghost, Handle, Inode, Time, Xattr
from criu_detached.restore import new_files, temporary
from criu_detached.restore.checks import check_ghost
from criu_detached.restore.context import ProcessFds
from criu_detached.restore.ghosts import GhostBuilder, depth
from criu_detached.restore.inodes import give_attributes

from .. import support

REGULAR = stat.S_IFREG | 0o640
DIRECTORY = stat.S_IFDIR | 0o2750
ROOT = b"tree"  # of the mount, beneath the bind source's root


def ghost(path: str, mode: int = REGULAR, **inode: Any) -> Ghost:
    """A deleted file that is to be made anew."""
    rdev = os.makedev(1, 5) if stat.S_IFMT(mode) in (stat.S_IFCHR, stat.S_IFBLK) else 0
    file = File(mnt_id=300, ino=77, mode=mode, path=path.encode(), rdev=rdev)
    values = {"uid": os.getuid(), "gid": os.getgid(), **inode}
    return Ghost(file=file, inode=Inode(**values))


def alias(path: str, other: str, ino: int = 77, mode: int = REGULAR) -> Ghost:
    """A deleted file that has another name, beneath the bind source's root."""
    return Ghost(file=File(ino=ino, mode=mode, path=path.encode()), alias=other.encode())


class Ground:
    """A bind source with a tree in it, which is the root of the new mount."""

    def __init__(self, path: Path) -> None:
        self.source = path / "source"
        self.tree = self.source / "tree"
        (self.tree / "dir").mkdir(parents=True)
        (self.tree / "file").write_text("somebody's")
        (self.source / "outside").write_text("beside the tree")
        self.images = path / "images"
        self.images.mkdir()
        self.keeps_inodes = True
        self.writer: DataFileWriter | None = None

    def content(self, data: bytes) -> dict[str, int]:
        """Put a content into the data file; returns what an inode says of it."""
        path = self.images / "content"
        path.write_bytes(data)
        if self.writer is None:
            directory = os.open(self.images, os.O_RDONLY)
            self.writer = DataFileWriter(directory)
        with support.opened(path) as fd:
            at, size = self.writer.add(fd, len(data))
        return {"size": len(data), "data_at": at, "data_size": size}

    @contextmanager
    def builder(self) -> Iterator[tuple[GhostBuilder, int]]:
        """A builder, and the new mount; nothing but what was made is left open."""
        with support.opened(self.source, os.O_PATH) as source:
            clone = kernel.clone_mount(source)
        with support.opened(self.tree, os.O_PATH) as root:
            tree = kernel.clone_mount(root)
        data = -1
        with support.opened(self.images) as images, support.opened(Path("/proc")) as proc:
            if self.writer is not None:
                data = open_data(images)
            reader = DataFileReader(data) if data >= 0 else None
            try:
                with GhostBuilder(clone, ProcessFds(proc, reader), self.keeps_inodes) as builder:
                    yield builder, tree
            finally:
                os.close(tree)
                if data >= 0:
                    os.close(data)

    def make(self, *ghosts: Ghost) -> list[int]:
        """Make ghosts as a restore does; returns their fds."""
        with self.builder() as (builder, tree):
            made = [(each, builder.make(each, tree, ROOT)) for each in sorted(ghosts, key=depth)]
        with support.opened(Path("/proc")) as proc:
            give_attributes(made, proc)
        return [next(fd for each, fd in made if each is wanted) for wanted in ghosts]


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    """Where mounts may be cloned; nothing is left behind, and no fd is left open."""
    made = Ground(tmp_path)
    with support.opened(tmp_path, os.O_PATH) as fd:
        try:
            os.close(kernel.clone_mount(fd))
        except PermissionError:
            pytest.skip("needs CAP_SYS_ADMIN")
    for directory in (made.source, made.tree, made.tree / "dir"):
        os.utime(directory, ns=(2_000_000_000_000_000_001, 1_000_000_000_000_000_002))
    before = support.names_in(made.source)
    yield made
    assert support.names_in(made.source) == before


def link(fd: int) -> str:
    """The link of a file, from the root of its mount."""
    return os.readlink(f"/proc/self/fd/{fd}")


def content(fd: int) -> bytes:
    """All that is in a file."""
    return Path(f"/proc/self/fd/{fd}").read_bytes()


def close(*fds: int) -> None:
    """Let go of what was made."""
    for fd in fds:
        os.close(fd)


def test_regular_file(ground: Ground) -> None:
    (fd,) = ground.make(ghost("dir/doomed", **ground.content(b"content")))
    assert link(fd) == "/dir/doomed (deleted)"
    assert content(fd) == b"content"
    assert os.fstat(fd).st_nlink == 0
    assert not os.get_inheritable(fd)
    close(fd)


@pytest.mark.parametrize("size", [0, 5, 1 << 40])
def test_file_of_holes(ground: Ground, size: int) -> None:
    (fd,) = ground.make(ghost("doomed", size=size))
    assert (os.fstat(fd).st_size, os.fstat(fd).st_blocks) == (size, 0)
    close(fd)


def test_unnamed_file(ground: Ground) -> None:
    """It can still be given a name, as what O_TMPFILE made."""
    record = ghost("dir/#77", **ground.content(b"draft"))
    record.unnamed = 1
    (fd,) = ground.make(record)
    assert link(fd) == f"/dir/#{os.fstat(fd).st_ino} (deleted)"
    assert content(fd) == b"draft"
    close(fd)


def test_unnamed_file_gets_a_name(ground: Ground) -> None:
    """As linkat(2) gives one to what O_TMPFILE made."""
    record = ghost("dir/#77")
    record.unnamed = 1
    with ground.builder() as (builder, tree):
        fd = builder.make(record, tree, ROOT)
        directory = os.open("dir", os.O_RDONLY, dir_fd=tree)
        os.link(f"/proc/self/fd/{fd}", "complete", dst_dir_fd=directory, follow_symlinks=True)
        assert os.path.samestat(os.fstat(fd), (ground.tree / "dir" / "complete").stat())
        os.unlink("complete", dir_fd=directory)
        os.utime(directory, ns=(2_000_000_000_000_000_001, 1_000_000_000_000_000_002))
    close(fd, directory)


@pytest.mark.parametrize(
    ("mode", "inode"),
    [
        (stat.S_IFDIR | 0o1770, {}),
        (stat.S_IFIFO | 0o604, {}),
        (stat.S_IFCHR | 0o620, {}),
        (stat.S_IFBLK | 0o660, {}),
        (stat.S_IFLNK | 0o777, {"target": b"no/where"}),
        (stat.S_IFREG | 0o4711, {}),
    ],
    ids=["directory", "fifo", "character", "block", "symlink", "regular"],
)
@pytest.mark.parametrize("path", ["doomed", "dir/doomed"])
def test_each_kind(ground: Ground, mode: int, inode: dict[str, bytes], path: str) -> None:
    """With all that an inode has."""
    record = ghost(
        path,
        mode,
        uid=1234,
        gid=5678,
        atime=Time(sec=5, nsec=6),
        mtime=Time(sec=(1 << 64) - 2, nsec=999_999_999),
        xattrs=[Xattr(name=b"trusted.color", value=b"blue\0green")],
        **inode,
    )
    (fd,) = ground.make(record)
    found = os.fstat(fd)
    assert found.st_mode == mode
    assert (found.st_uid, found.st_gid) == (1234, 5678)
    assert (found.st_atime_ns, found.st_mtime_ns) == (5_000_000_006, -1_000_000_001)
    assert found.st_rdev == (os.makedev(1, 5) if record.file and record.file.rdev else 0)
    assert os.getxattr(f"/proc/self/fd/{fd}", "trusted.color") == b"blue\0green"
    assert link(fd) == f"/{path} (deleted)"
    if inode:
        assert os.readlink("", dir_fd=fd) == "no/where"
    close(fd)


def test_times_of_directories(ground: Ground) -> None:
    """Those of reading too."""
    kinds = (REGULAR, DIRECTORY, stat.S_IFIFO | 0o600)
    close(*ground.make(*(ghost(f"dir/{mode}", mode) for mode in kinds), ghost("a/b/c")))
    for directory in (ground.source, ground.tree, ground.tree / "dir"):
        found = directory.stat()
        assert found.st_atime_ns == 2_000_000_000_000_000_001
        assert found.st_mtime_ns == 1_000_000_000_000_000_002


@pytest.mark.parametrize("mode", [REGULAR, DIRECTORY, stat.S_IFIFO | 0o600, stat.S_IFLNK | 0o777])
def test_taken_name(ground: Ground, mode: int) -> None:
    """What has the name by now is left alone."""
    target = {"target": b"x"} if stat.S_ISLNK(mode) else {}
    (fd,) = ground.make(ghost("file", mode, **target))
    assert link(fd) == "/file.cr_link (deleted)"
    assert (ground.tree / "file").read_text() == "somebody's"
    close(fd)


def test_taken_suffixes(ground: Ground) -> None:
    taken = [ground.tree / name for name in ("file.cr_link", "file.cr_link2")]
    for path in taken:
        path.write_text("somebody's too")
    (fd,) = ground.make(ghost("file"))
    assert link(fd) == "/file.cr_link3 (deleted)"
    close(fd)
    for path in taken:
        path.unlink()
    os.utime(ground.tree, ns=(2_000_000_000_000_000_001, 1_000_000_000_000_000_002))


def test_every_name_is_taken(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temporary, "_TRIES", 1)
    with pytest.raises(FileExistsError, match="every name"):
        ground.make(ghost("file"))


def test_name_that_is_as_long_as_names_may_be(ground: Ground) -> None:
    """There is no room for a suffix; where it is needed, that is an error."""
    name = "n" * 255
    (fd,) = ground.make(ghost(name))
    assert link(fd) == f"/{name} (deleted)"
    close(fd)


def test_missing_parents(ground: Ground) -> None:
    """They are made for the moment."""
    fds = ground.make(ghost("gone/a/one"), ghost("gone/a/two"), ghost("gone/three"))
    assert [link(fd) for fd in fds] == [
        "/gone/a/one (deleted)",
        "/gone/a/two (deleted)",
        "/gone/three (deleted)",
    ]
    close(*fds)


def test_parent_that_is_no_directory_any_more(ground: Ground) -> None:
    (fd,) = ground.make(ghost("file/one"))
    assert link(fd) == "/file.cr_link/one (deleted)"
    close(fd)


def test_parent_that_is_a_symlink_by_now(ground: Ground) -> None:
    """It is not followed."""
    path = ground.tree / "dir" / "way"
    path.symlink_to("..")
    (fd,) = ground.make(ghost("dir/way/one"))
    assert link(fd) == "/dir/way.cr_link/one (deleted)"
    close(fd)
    path.unlink()
    os.utime(path.parent, ns=(2_000_000_000_000_000_001, 1_000_000_000_000_000_002))


def test_deleted_directories(ground: Ground) -> None:
    """What was in a deleted directory is in it again, whatever the order of the records."""
    inner, lost, outer = ghost("a/b", DIRECTORY), ghost("a/b/lost"), ghost("a", DIRECTORY)
    fds = ground.make(inner, lost, outer)
    assert [link(fd) for fd in fds] == ["/a/b (deleted)", "/a/b/lost (deleted)", "/a (deleted)"]
    assert os.path.samestat(os.stat("..", dir_fd=fds[0]), os.fstat(fds[2]))
    close(*fds)


def test_deleted_directories_of_one_name(ground: Ground) -> None:
    fds = ground.make(ghost("a", DIRECTORY), ghost("a", DIRECTORY), ghost("a/lost"))
    assert len({os.fstat(fd).st_ino for fd in fds}) == 3
    assert {link(fd) for fd in fds[:2]} == {"/a (deleted)", "/a.cr_link (deleted)"}
    close(*fds)


def test_many_of_one_name(ground: Ground) -> None:
    """Each has it in its turn."""
    fds = ground.make(*(ghost("dir/log", **ground.content(b"%d" % n)) for n in range(20)))
    assert {link(fd) for fd in fds} == {"/dir/log (deleted)"}
    assert [content(fd) for fd in fds] == [b"%d" % number for number in range(20)]
    close(*fds)


@pytest.mark.parametrize("path", ["doomed", "file", "gone/doomed"])
def test_alias(ground: Ground, path: str) -> None:
    """The very file, by its other name, which may be outside of the mount."""
    outside = ground.source / "outside"
    (fd,) = ground.make(alias(path, "outside", ino=outside.stat().st_ino))
    assert os.path.samestat(os.fstat(fd), outside.stat())
    assert link(fd) == f"/{path}{'.cr_link' * (path == 'file')} (deleted)"
    close(fd)


def test_alias_in_a_deleted_directory_whose_name_is_taken(ground: Ground) -> None:
    """The link is made where the directory is for the moment, and is gone with it."""
    ino = (ground.source / "outside").stat().st_ino
    fds = ground.make(ghost("dir", DIRECTORY), alias("dir/doomed", "outside", ino))
    assert link(fds[1]) == "/dir.cr_link/doomed (deleted)"
    close(*fds)


def test_alias_that_moved(ground: Ground) -> None:
    """The file handle leads to it, where inodes are the same."""
    path = ground.source / "outside"
    with support.opened(path) as fd:
        kind, data = kernel.name_to_handle(fd)
    record = alias("doomed", "moved/away", path.stat().st_ino)
    assert record.file is not None
    record.file.handle = Handle(type=kind, bytes=data)
    (fd,) = ground.make(record)
    assert os.path.samestat(os.fstat(fd), path.stat())
    close(fd)
    ground.keeps_inodes = False
    with pytest.raises(DetachedError, match=r"other name .*moved/away, does not lead to it"):
        ground.make(record)


@pytest.mark.parametrize(
    ("other", "mode"), [("tree/file", REGULAR), ("absent", REGULAR), ("outside", DIRECTORY)]
)
def test_alias_that_is_another_file(ground: Ground, other: str, mode: int) -> None:
    ino = (ground.source / "outside").stat().st_ino
    with pytest.raises(DetachedError, match="does not lead to it any more"):
        ground.make(alias("doomed", other, ino, mode))


def test_alias_on_another_filesystem_than_at_the_dump(ground: Ground) -> None:
    """Then inodes say nothing."""
    ground.keeps_inodes = False
    (fd,) = ground.make(alias("doomed", "outside", ino=5))
    assert content(fd) == b"beside the tree"
    close(fd)


def no_tmpfile(monkeypatch: pytest.MonkeyPatch) -> None:
    """A filesystem without O_TMPFILE."""
    real = os.open

    def without(path: bytes, flags: int, *rest: int, **names: int) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "O_TMPFILE")
        return real(path, flags, *rest, **names)

    monkeypatch.setattr(os, "open", without)


def test_filesystem_without_o_tmpfile(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [ghost(name, **ground.content(b"content")) for name in ("file", "dir/doomed")]
    no_tmpfile(monkeypatch)
    fds = ground.make(*records)
    assert [link(fd) for fd in fds] == ["/file.cr_link (deleted)", "/dir/doomed (deleted)"]
    assert [content(fd) for fd in fds] == [b"content"] * 2
    close(*fds)


@pytest.mark.parametrize("tmpfile", [True, False])
def test_failure_in_the_middle(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, tmpfile: bool
) -> None:
    """What was there for the moment is gone all the same."""
    damaged = ghost("gone/doomed", **ground.content(b"content"))
    assert damaged.inode is not None
    damaged.inode.data_size += 1
    first = ghost("gone", DIRECTORY)
    if not tmpfile:
        no_tmpfile(monkeypatch)
    before = set(support.open_fds())
    with ground.builder() as (builder, tree):
        kept = builder.make(first, tree, ROOT)
        with pytest.raises(DetachedError, match="damaged"):
            builder.make(damaged, tree, ROOT)
    assert set(support.open_fds()) == before | {kept}
    close(kept)


def test_no_fd_is_left_open(ground: Ground) -> None:
    records = [
        ghost("a", DIRECTORY),
        ghost("a", DIRECTORY),
        ghost("a/b/c", **ground.content(b"content")),
        ghost("a/pipe", stat.S_IFIFO | 0o600),
        alias("a/alias", "outside", (ground.source / "outside").stat().st_ino),
    ]
    before = set(support.open_fds())
    made = ground.make(*records)
    assert set(support.open_fds()) == before | set(made)
    close(*made)


def test_something_was_put_into_a_directory_of_the_moment(ground: Ground) -> None:
    """It is not ours to remove; all else goes, and the restore fails."""
    path = ground.tree / "gone"

    def work() -> None:
        with ground.builder() as (builder, tree):
            close(builder.make(ghost("gone/a", DIRECTORY), tree, ROOT))
            close(builder.make(ghost("other", DIRECTORY), tree, ROOT))
            (path / "theirs").write_text("quick")

    with pytest.raises(OSError, match="not empty"):
        work()
    assert sorted(os.listdir(ground.tree)) == ["dir", "file", "gone"]
    assert os.listdir(path) == ["theirs"]
    (path / "theirs").unlink()
    path.rmdir()
    os.utime(ground.tree, ns=(2_000_000_000_000_000_001, 1_000_000_000_000_000_002))


@pytest.mark.parametrize("mode", [stat.S_IFDIR | 0o700, stat.S_IFREG | 0o600])
@pytest.mark.parametrize("held", [True, False])
def test_root(ground: Ground, mode: int, held: bool) -> None:
    """The deleted root of a mount has a name for as long as the builder is open."""
    before = set(support.open_fds())
    record = ghost(".", mode) if held else None
    with ground.builder() as (builder, _):
        path = builder.make_root(b"gone/root", mode, record)
        assert path == b"gone/root"
        found = (ground.source / "gone" / "root").stat()
        assert stat.S_IFMT(found.st_mode) == stat.S_IFMT(mode)
        with support.opened(ground.source / "gone" / "root", os.O_PATH) as root:
            tree = kernel.clone_mount(root)
        fd = builder.make(ghost(".", mode), tree, path)
        assert os.fstat(fd).st_ino == found.st_ino
        close(tree)
    assert link(fd) == "/ (deleted)"
    close(fd)
    assert set(support.open_fds()) == before


def test_root_whose_name_is_taken(ground: Ground) -> None:
    with ground.builder() as (builder, _):
        assert builder.make_root(b"outside", stat.S_IFDIR, None) == b"outside.cr_link"


def test_root_whose_record_is_of_another_type(ground: Ground) -> None:
    """The caller refuses it; the name goes all the same."""
    with ground.builder() as (builder, _):
        builder.make_root(b"root", stat.S_IFDIR, ghost("."))


# struct posix_acl_xattr_header and _entry of linux/posix_acl_xattr.h
def acl(*entries: tuple[int, int]) -> bytes:
    """An access control list, of tags and permissions."""
    text = (2).to_bytes(4, "little")
    for tag, permissions in entries:
        name = 1000 if tag == 2 else 0xFFFFFFFF
        text += b"".join(
            (
                tag.to_bytes(2, "little"),
                permissions.to_bytes(2, "little"),
                name.to_bytes(4, "little"),
            )
        )
    return text


ACL = acl((1, 7), (2, 6), (4, 5), (0x10, 7), (0x20, 0))


def test_acl_that_is_inherited(ground: Ground) -> None:
    """The directory has got a default one since; the deleted file had none."""
    directory = ground.tree / "dir"
    os.setxattr(directory, "system.posix_acl_default", ACL)
    records = [ghost("dir/doomed"), ghost("dir/sub", stat.S_IFDIR | 0o750), ghost("dir/acl")]
    assert records[2].inode is not None
    records[2].inode.xattrs = [Xattr(name=b"system.posix_acl_access", value=ACL)]
    fds = ground.make(*records)
    for fd, mode in zip(fds[:2], (0o640, 0o750), strict=True):
        assert os.listxattr(f"/proc/self/fd/{fd}") == []
        assert stat.S_IMODE(os.fstat(fd).st_mode) == mode
    assert os.getxattr(f"/proc/self/fd/{fds[2]}", "system.posix_acl_access") == ACL
    close(*fds)


def test_working_directory_is_left(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ground.tree)
    close(*ground.make(ghost("doomed")))
    assert os.path.samestat(os.stat("."), ground.tree.stat())


def test_attributes_that_are_refused(ground: Ground) -> None:
    before = set(support.open_fds())
    where = Path.cwd()
    with (
        support.opened(ground.tree / "file", os.O_PATH) as fd,
        support.opened(Path("/proc")) as proc,
    ):
        record = ghost("file", xattrs=[Xattr(name=b"nonsense", value=b"x")])
        facts = os.fstat(fd)
        with pytest.raises(OSError, match="not supported"):
            give_attributes([(record, fd)], proc)
        os.chmod(ground.tree / "file", facts.st_mode)
        os.utime(ground.tree / "file", ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert Path.cwd() == where
    assert set(support.open_fds()) == before


Change = Callable[[Ghost, File, Inode], object]


def change_both(name: str, value: object) -> Change:
    """Set a field of the file or the inode."""
    return lambda _, file, inode: setattr(file if hasattr(file, name) else inode, name, value)


HOSTILE: list[tuple[Change, str]] = [
    *(
        (change_both("path", path), "invalid path")
        for path in (b"..", b"../a", b"a/../b", b"/etc/a", b"a//b", b"a/", b"./a", b"a\0b", b"")
    ),
    (lambda record, file, inode: setattr(record, "alias", b"../a"), "invalid path"),
    (lambda record, file, inode: setattr(record, "alias", b"/etc/passwd"), "invalid path"),
    (lambda record, file, inode: setattr(record, "alias", b"a\0"), "invalid path"),
    (change_both("mode", stat.S_IFSOCK | 0o600), "invalid mode"),
    (change_both("mode", 0o644), "invalid mode"),
    (change_both("mode", 0o170644), "invalid mode"),
    (change_both("mode", stat.S_IFLNK | 0o777), "invalid target"),
    (change_both("target", b"x"), "invalid target"),
    (change_both("xattrs", [Xattr(name=b"", value=b"x")]), "invalid extended attribute"),
    (change_both("xattrs", [Xattr(name=b"user.a\0b")]), "invalid extended attribute"),
    (change_both("data_at", 0), "damaged"),
    (change_both("data_at", 1 << 61), "damaged"),
    (change_both("data_size", 1 << 61), "damaged"),
    (lambda record, file, inode: setattr(inode, "size", 3), "damaged"),
    (change_both("mode", stat.S_IFIFO | 0o600), "not there"),
]


@pytest.mark.parametrize(("change", "why"), HOSTILE)
def test_hostile_record(ground: Ground, change: Change, why: str) -> None:
    record = ghost("doomed", **ground.content(b"content"))
    assert record.file is not None and record.inode is not None
    with support.opened(ground.images) as images:
        fd = open_data(images)
        reader = DataFileReader(fd)
        check_ghost(record, reader)
        change(record, record.file, record.inode)
        with pytest.raises(DetachedError, match=why) as error:
            check_ghost(record, reader)
        os.close(fd)
    assert len(str(error.value).splitlines()) == 1
    assert str(error.value).isprintable()


def test_hostile_target() -> None:
    record = ghost("link", stat.S_IFLNK | 0o777, target=b"a\0b")
    with pytest.raises(DetachedError, match="invalid target"):
        check_ghost(record, None)


def test_content_without_a_data_file() -> None:
    with pytest.raises(DetachedError, match="has a content, which is not there"):
        check_ghost(ghost("doomed", size=5, data_at=8, data_size=21), None)


def test_nothing_leads_to_it() -> None:
    with pytest.raises(DetachedError, match="nothing tells where doomed is"):
        check_ghost(Ghost(file=File(path=b"doomed", mode=REGULAR)), None)


def test_order() -> None:
    """Directories come before what is in them."""
    names = [".", "a", "b", "a/b", "b/a", "a/b/c"]
    records = sorted((ghost(name) for name in reversed(names)), key=depth)
    assert [record.file.path.decode() for record in records if record.file] == names


@pytest.mark.parametrize("mode", [REGULAR, stat.S_IFIFO | 0o600])
def test_swapped_while_it_was_made(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    """What somebody puts in its place for that moment is not given its owner and permissions."""
    victim = ground.tree / "victim"
    (victim.touch if stat.S_ISREG(mode) else lambda: os.mkfifo(victim))()
    before = victim.stat()
    give_name = temporary.first_free

    def swapped(name: bytes, make: Callable[[bytes], None]) -> bytes:
        found = give_name(name, make)
        (ground.tree / os.fsdecode(found)).unlink()
        os.link(victim, ground.tree / os.fsdecode(found))
        return found

    monkeypatch.setattr(new_files, "first_free", swapped)
    with (
        ground.builder() as (builder, tree),
        pytest.raises(DetachedError, match="was replaced while it was made again"),
    ):
        builder.make(ghost("ghost", mode), tree, ROOT)
    after = victim.stat()
    assert (after.st_ino, after.st_mode, after.st_nlink) == (before.st_ino, before.st_mode, 1)
    victim.unlink()
    os.utime(ground.tree, ns=(2_000_000_000_000_000_001, 1_000_000_000_000_000_002))
