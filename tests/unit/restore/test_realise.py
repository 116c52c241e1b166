"""From a mount record to a tree fd, or a refusal that names what is wrong."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from criu_detached import kernel
from criu_detached.dump.open_file import handle_of
from criu_detached.errors import DetachedError
from criu_detached.filesystems import attributes
from criu_detached.images.records import BindSource, File, Ghost, Inode, Mount, Superblock
from criu_detached.restore.context import ProcessFds
from criu_detached.restore.realise import Realiser
from criu_detached.restore.source import Source
from criu_detached.restore.trees import Realised
from criu_detached.restore.with_ghosts import GhostRealiser

from .. import support
from ..support import good_mount


class Ground:
    """A tmpfs that is the namespace: a record's mountpoint is reached from its root."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.same = False
        (path / "mnt" / "tree").mkdir(parents=True)
        (path / "mnt" / "tree" / "file").write_text("content")
        status = path.stat()
        fd = os.open(path, os.O_PATH)
        magic = kernel.fstatfs(fd).magic
        os.close(fd)
        self.superblock = Superblock(
            fs_type=b"tmpfs",
            magic=magic,
            dev=status.st_dev,
            fsid=os.statvfs(path).f_fsid,
        )

    def realise(self, mount: Mount, *, same_boot: bool = True) -> int:
        """Realise a mount from here."""
        root = os.open(self.path, os.O_PATH)
        try:
            source = Source(mount, root, same_boot)
            found = Realiser().realise(source, ProcessFds(-1))
            self.same = found.keeps_inodes
            return found.tree
        finally:
            os.close(root)


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    """Where mounts may be cloned."""
    made = Ground(tmp_path)
    fd = os.open(tmp_path, os.O_PATH)
    os.close(support.clone_mount(fd))
    os.close(fd)
    return made


def test_realised(ground: Ground) -> None:
    """Its root is the recorded one, it has its attributes, and no one sees it."""
    mounts = Path("/proc/self/mountinfo").read_text()
    tree = ground.realise(good_mount(superblock=ground.superblock))
    try:
        assert os.listdir(f"/proc/self/fd/{tree}") == ["file"]
        flags = kernel.fstatfs(tree).flags
        assert flags & os.ST_NOSUID
        assert not flags & (os.ST_NODEV | os.ST_NOEXEC | os.ST_RDONLY)
        assert flags & os.ST_RELATIME
        assert not os.get_inheritable(tree)
    finally:
        os.close(tree)
    assert Path("/proc/self/mountinfo").read_text() == mounts


@pytest.mark.parametrize(
    ("attr", "status"),
    [
        (0, os.ST_RELATIME),
        (kernel.MOUNT_ATTR_RDONLY, os.ST_RDONLY | os.ST_RELATIME),
        (kernel.MOUNT_ATTR_NODEV | kernel.MOUNT_ATTR_NOATIME, os.ST_NODEV | os.ST_NOATIME),
        (kernel.MOUNT_ATTR_STRICTATIME, 0),
        (kernel.MOUNT_ATTR_NODIRATIME, os.ST_NODIRATIME | os.ST_RELATIME),
        (kernel.MOUNT_ATTR_NOEXEC, os.ST_NOEXEC | os.ST_RELATIME),
        (kernel.MOUNT_ATTR_NOSYMFOLLOW, 0x2000 | os.ST_RELATIME),
    ],
)
def test_attributes_are_the_records_alone(ground: Ground, attr: int, status: int) -> None:
    """Whatever the source has: it may have been mounted anew since."""
    source = ground.path / "mnt"
    with support.mounted(source, "--bind", "-o", "nosuid,nodev,noexec,ro", str(source)):
        tree = ground.realise(good_mount(superblock=ground.superblock, attr=attr))
    found = kernel.fstatfs(tree).flags
    os.close(tree)
    assert found & ~0x20 == status  # ST_VALID


def test_mount_of_a_file(ground: Ground) -> None:
    source = BindSource(mnt_id=30, mountpoint=b"/mnt", path=b"tree/file")
    record = good_mount(superblock=ground.superblock, bind_source=source, root_type=stat.S_IFREG)
    tree = ground.realise(record)
    assert Path(f"/proc/self/fd/{tree}").read_text() == "content"
    os.close(tree)


Change = Callable[[Ground, Mount], None]


def remove_source(ground: Ground, record: Mount) -> None:
    (ground.path / "mnt").rename(ground.path / "elsewhere")


def remove_root(ground: Ground, record: Mount) -> None:
    (ground.path / "mnt" / "tree").rename(ground.path / "mnt" / "elsewhere")


def replace_mountpoint(ground: Ground, record: Mount) -> None:
    remove_source(ground, record)
    (ground.path / "mnt").symlink_to("elsewhere")


def replace_root_by_link(ground: Ground, record: Mount) -> None:
    remove_root(ground, record)
    (ground.path / "mnt" / "tree").symlink_to("elsewhere")


def replace_root_by_file(ground: Ground, record: Mount) -> None:
    remove_root(ground, record)
    (ground.path / "mnt" / "tree").touch()


def other_type(ground: Ground, record: Mount) -> None:
    record.superblock = Superblock(fs_type=b"ext4", magic=0xEF53)


def other_device(ground: Ground, record: Mount) -> None:
    record.superblock = Superblock(
        fs_type=b"tmpfs", magic=ground.superblock.magic, dev=5, fsid=ground.superblock.fsid ^ 1
    )


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (remove_source, "cannot be opened .No such file"),
        (remove_root, "cannot be opened .No such file"),
        (replace_mountpoint, "cannot be opened .Not a directory"),
        (replace_root_by_link, "a symlink, it was a directory"),
        (replace_root_by_file, "a regular file, it was a directory"),
        (other_type, "another filesystem .*ext4"),
        (other_device, "another tmpfs filesystem than at the dump"),
    ],
)
def test_changed_source(ground: Ground, change: Change, why: str) -> None:
    record = good_mount(superblock=ground.superblock)
    change(ground, record)
    before = support.open_fds()
    with pytest.raises(DetachedError, match=f"bind source /mnt/tree.*{why}") as error:
        ground.realise(record)
    assert len(str(error.value).splitlines()) == 1
    assert support.open_fds() == before


def test_other_device_in_a_namespace_that_is_made_anew(ground: Ground) -> None:
    record = good_mount(superblock=ground.superblock)
    other_device(ground, record)
    assert record.bind_source is not None
    record.bind_source.in_namespace = 1
    os.close(ground.realise(record))
    assert not ground.same


@pytest.mark.parametrize("deleted", [False, True], ids=["plain", "deleted"])
@pytest.mark.parametrize("told", [False, True], ids=["unknown", "told"])
def test_root_that_was_made_anew(ground: Ground, told: bool, deleted: bool) -> None:
    """Inodes are compared no more, where the record tells it."""
    with support.opened(ground.path / "mnt" / "tree", os.O_PATH) as root:
        handle = handle_of(root) if told else None
    record = good_mount(superblock=ground.superblock, root_handle=handle)
    ghosts = [ghost(b"one")] if deleted else []
    found, _ = realise_ghosts(ground, record, *ghosts)
    assert found.keeps_inodes
    found.close()
    remove_root(ground, record)
    (ground.path / "mnt" / "tree").mkdir()
    found, _ = realise_ghosts(ground, record, *ghosts)
    assert found.keeps_inodes is not told
    found.close()


def test_attribute_field_that_is_none(ground: Ground) -> None:
    """Every bit is known, but there is no such mode of access times."""
    before = support.open_fds()
    with pytest.raises(DetachedError, match="can't give the clone of /mnt/tree the attributes"):
        ground.realise(good_mount(superblock=ground.superblock, attr=kernel.MOUNT_ATTR__ATIME))
    assert support.open_fds() == before


def ghost(path: bytes, mode: int = stat.S_IFREG | 0o640, **inode: Any) -> Ghost:
    """The record of a deleted file that is made anew."""
    return Ghost(file=File(mnt_id=300, ino=77, mode=mode, path=path), inode=Inode(**inode))


def realise_ghosts(ground: Ground, mount: Mount, *ghosts: Ghost) -> tuple[Realised, list[str]]:
    """Realise a mount with deleted files; also the links of these."""
    with support.opened(ground.path, os.O_PATH) as root, support.opened(Path("/proc")) as proc:
        realiser = GhostRealiser({mount.mnt_id: list(ghosts)})
        found = realiser.realise(Source(mount, root, True), ProcessFds(proc))
    return found, [os.readlink(f"/proc/self/fd/{fd}") for _, fd in found.ghosts]


@pytest.mark.parametrize("attr", [0, kernel.MOUNT_ATTR_RDONLY, kernel.MOUNT_ATTR_NOEXEC])
def test_deleted_files(ground: Ground, attr: int) -> None:
    """They are on the mount, which has its attributes, also when it is read-only."""
    before, mounts = support.names_in(ground.path), Path("/proc/self/mountinfo").read_text()
    record = good_mount(superblock=ground.superblock, attr=attr)
    deep, plain = ghost(b"gone/deep", uid=5), ghost(b"file", gid=6)
    found, links = realise_ghosts(ground, record, deep, plain)
    assert links == ["/file.cr_link (deleted)", "/gone/deep (deleted)"]
    assert [each for each, _ in found.ghosts] == [plain, deep]
    assert {kernel.fstat(fd).mnt_id for _, fd in found.ghosts} == {kernel.fstat(found.tree).mnt_id}
    status = {0: 0, kernel.MOUNT_ATTR_RDONLY: os.ST_RDONLY, kernel.MOUNT_ATTR_NOEXEC: os.ST_NOEXEC}
    flags = kernel.fstatfs(found.tree).flags
    assert flags & (os.ST_RDONLY | os.ST_NOEXEC) == status[attr]
    assert [(os.fstat(fd).st_uid, os.fstat(fd).st_gid) for _, fd in found.ghosts] == [
        (0, 6),
        (5, 0),
    ]
    found.close()
    assert support.names_in(ground.path) == before
    assert Path("/proc/self/mountinfo").read_text() == mounts


def test_deleted_files_of_a_read_only_source(ground: Ground) -> None:
    """The mounts are read-only, the filesystem is not."""
    source = ground.path / "mnt"
    with support.mounted(source, "--bind", "-o", "ro", str(source)):
        found, links = realise_ghosts(
            ground, good_mount(superblock=ground.superblock), ghost(b"one")
        )
    assert links == ["/one (deleted)"]
    found.close()


@pytest.mark.parametrize("held", [False, True])
def test_deleted_root(ground: Ground, held: bool) -> None:
    before = support.names_in(ground.path)
    source = BindSource(mnt_id=30, mountpoint=b"/mnt", path=b"gone/root")
    record = good_mount(superblock=ground.superblock, bind_source=source, root_deleted=1)
    records = [ghost(b"lost")]
    if held:
        records.append(ghost(b".", stat.S_IFDIR | 0o711, uid=5))
    found, links = realise_ghosts(ground, record, *records)
    assert links == ["/ (deleted)", "/lost (deleted)"][not held :]
    assert os.readlink(f"/proc/self/fd/{found.tree}") == "/ (deleted)"
    if held:
        assert (os.fstat(found.tree).st_uid, os.fstat(found.tree).st_mode & 0o777) == (5, 0o711)
    found.close()
    assert support.names_in(ground.path) == before


def test_deleted_file_that_cannot_be_made(ground: Ground) -> None:
    """Nothing of the others is left, neither a name nor an fd."""
    names, before = support.names_in(ground.path), support.open_fds()
    bad = ghost(b"z/bad", stat.S_IFLNK | 0o777)
    with pytest.raises(DetachedError, match="can't make the deleted files of /mnt/tree again"):
        realise_ghosts(ground, good_mount(superblock=ground.superblock), ghost(b"a/one"), bad)
    assert support.open_fds() == before
    assert support.names_in(ground.path) == names


def test_deleted_root_of_another_type(ground: Ground) -> None:
    names, before = support.names_in(ground.path), support.open_fds()
    source = BindSource(mnt_id=30, mountpoint=b"/mnt", path=b"root")
    record = good_mount(superblock=ground.superblock, bind_source=source, root_deleted=1)
    with pytest.raises(DetachedError, match="a regular file, it was a directory"):
        realise_ghosts(ground, record, ghost(b"."))
    assert support.open_fds() == before
    assert support.names_in(ground.path) == names


def test_deleted_file_on_an_id_mapped_mount(ground: Ground) -> None:
    """The id-map has no place for the one who makes the file, but for its owner."""
    mapped = good_mount(
        superblock=ground.superblock, uid_map=[b"1000 5000 1"], gid_map=[b"1000 6000 1"]
    )
    records = [
        ghost(b"dir", stat.S_IFDIR | 0o700, uid=5000, gid=6000),
        ghost(b"dir/file", uid=5000, gid=6000),
    ]
    userns = attributes.make_user_namespace(mapped)
    with support.opened(ground.path, os.O_PATH) as root, support.opened(Path("/proc")) as proc:
        realiser = GhostRealiser({mapped.mnt_id: records})
        found = realiser.realise(Source(mapped, root, True), ProcessFds(proc, userns=userns))
    os.close(userns)
    assert [(os.fstat(fd).st_uid, os.fstat(fd).st_gid) for _, fd in found.ghosts] == [
        (5000, 6000),
        (5000, 6000),
    ]
    found.close()
    assert os.listdir(ground.path / "mnt" / "tree") == ["file"]


def test_owner_that_is_not_in_the_id_map(ground: Ground) -> None:
    mapped = good_mount(
        superblock=ground.superblock, uid_map=[b"1000 5000 1"], gid_map=[b"1000 6000 1"]
    )
    before = support.open_fds()
    with pytest.raises(DetachedError, match="the id-map of a mount has no place for 6001"):
        realise_ghosts(ground, mapped, ghost(b"doomed", uid=5000, gid=6001))
    assert support.open_fds() == before
