"""From a watched inode to a file that is recorded: on which mount, by which way."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from criu_detached import kernel
from criu_detached.dump.kinds.watched import WatchedFiles, pass_by_watches
from criu_detached.dump.observe.watches import Watch
from criu_detached.errors import DetachedError
from criu_detached.kernel import FileStat, mountinfo

from ... import support
from ..observe.test_holders import process
from ..stand_ins import StandInContext


class Ground:
    """A filesystem with some files, and the names that its watched files are given."""

    def __init__(self, path: Path, stack: ExitStack, patch: pytest.MonkeyPatch) -> None:
        self.path = path
        self.stack = stack
        self.patch = patch
        for name in ("source/dir", "mnt"):
            (path / name).mkdir(parents=True)
        self.source = path / "source"
        stack.enter_context(support.mounted(self.source, "-t", "tmpfs", "watched"))
        (self.source / "dir").mkdir()
        for name in ("file", "dir/inner"):
            (self.source / name).write_text("content")
        (self.source / "link").symlink_to("file")
        self.known: Callable[[int], int] = lambda mnt_id: 0
        self.names: list[tuple[int, int, bytes]] = []
        self.recorded: list[tuple[str, int]] = []  # link and mount id
        self.leave: set[str] = set()
        self.tasks: list[int] = []  # that are dumped

    def find(self) -> None:
        """CRIU has found a watched inode on no mount."""
        self.watched = self.begin()
        self.name_all(self.watched)

    def begin(self) -> WatchedFiles:
        """The dump begins."""
        context = StandInContext()
        context.machine.tasks = self.tasks
        context.criu.mount_known = lambda mnt_id: self.known(mnt_id)
        self.patch.setattr(context.criu, "watch_name_add", lambda *name: self.names.append(name))
        return WatchedFiles(context)

    def name_all(self, watched: WatchedFiles) -> None:
        """What dump.py does, with a record that may be refused."""
        for watch in watched.unnamed():
            watched.name(watch, self.record(watched, watch))

    def record(self, watched: WatchedFiles, watch: Watch) -> FileStat:
        """Record a watched file."""
        refusal = ""
        for file in watched.files(watch):
            link = os.fsdecode(file.link)
            if link not in self.leave:
                self.recorded.append((link, file.stat.mnt_id))
                return file.stat
            refusal = f"{link}: it has no bind source"
        raise watched.refusal(watch, refusal)

    def watch(self, *names: str) -> None:
        """Watch files."""
        paths = [self.source / name for name in names]
        self.stack.enter_context(support.inotify(*paths))

    def detach(self, inside: str = "") -> int:
        """An fd of the root of a detached mount, O_PATH."""
        return self.stack.enter_context(support.detached(self.path / "mnt", self.source / inside))

    def name(self, path: str, mnt_id: int) -> tuple[int, int, bytes]:
        """The name that a file should have."""
        found = (self.source / path).stat()
        return found.st_dev, found.st_ino, b"ile[%x:%x]" % (mnt_id, found.st_ino)


@pytest.fixture
def ground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ground]:
    """The ground, and an end to all that is open on it."""
    with ExitStack() as stack:
        yield Ground(tmp_path, stack, monkeypatch)


@pytest.fixture
def task(ground: Ground) -> Callable[..., None]:
    """Starts a process that is dumped, which opens something."""

    def start(code: str) -> None:
        ground.tasks = [ground.stack.enter_context(process(code))]

    return start


def reach(root: int, name: str, flags: str = "0") -> str:
    """Code of a task that opens a file on a mount of this process's."""
    return f"os.open('/proc/{os.getpid()}/fd/{root}/{name}', {flags})"


@pytest.mark.parametrize(
    "code",
    ["os.open({path}, 0)", "os.open({path}, os.O_PATH)", "os.chdir({path})"],
    ids=["fd", "o_path", "cwd"],
)
def test_by_a_directory(ground: Ground, task: Callable[[str], None], code: str) -> None:
    """Of whatever kind, and wherever it is on its mount."""
    ground.watch("file", "dir/inner")
    root = ground.detach()
    task(code.format(path=f"'/proc/{os.getpid()}/fd/{root}/dir'"))
    mnt_id = kernel.fstat(root).mnt_id
    ground.find()
    assert sorted(ground.recorded) == [("/dir/inner", mnt_id), ("/file", mnt_id)]
    assert sorted(ground.names) == sorted(ground.name(n, mnt_id) for n in ("file", "dir/inner"))


def test_repeated_number(
    ground: Ground, task: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two files that CRIU would take for one, by what it asks for."""
    read = Watch.__init__

    def read_all_but_number(self: Watch, line: bytes) -> None:
        read(self, line)
        self.ino = 7

    ground.watch("file", "dir/inner")
    task(reach(ground.detach(), "dir"))
    monkeypatch.setattr(Watch, "__init__", read_all_but_number)
    with pytest.raises(DetachedError, match=r"inode 7 on device .*: another file that is watched"):
        ground.find()


def test_directory_by_the_fd_of_a_file(ground: Ground, task: Callable[[str], None]) -> None:
    """Without opening the file."""
    ground.watch("dir")
    root = ground.detach()
    task(reach(root, "dir/inner"))
    ground.find()
    assert ground.recorded == [("/dir", kernel.fstat(root).mnt_id)]


def test_the_file_itself(ground: Ground, task: Callable[[str], None]) -> None:
    """By path alone, and deleted."""
    ground.watch("file")
    root = ground.detach()
    task(reach(root, "file", "os.O_PATH"))
    (ground.source / "file").unlink()
    ground.find()
    assert ground.recorded == [("/file (deleted)", kernel.fstat(root).mnt_id)]


def test_out_of_the_mount(ground: Ground, task: Callable[[str], None]) -> None:
    """A mount of a subdirectory does not lead to what is above; a source does."""
    ground.watch("file")
    root = ground.detach("dir")
    task(reach(root, "."))
    ground.find()
    ((link, mnt_id),) = ground.recorded
    assert link == "/file"
    attached = {mount.mnt_id for mount in mountinfo.read_mountinfo()}
    assert mnt_id not in attached | {kernel.fstat(root).mnt_id}


def test_next_one_when_the_first_is_refused(ground: Ground, task: Callable[[str], None]) -> None:
    ground.watch("dir/inner")
    root = ground.detach("dir")
    task(reach(root, "inner"))
    ground.leave = {"/inner"}
    ground.find()
    assert [link for link, _ in ground.recorded] == ["/dir/inner"]


def test_last_refusal_is_told(ground: Ground) -> None:
    ground.watch("file")
    ground.leave = {"/file"}
    ino = (ground.source / "file").stat().st_ino
    with pytest.raises(DetachedError, match=rf"^inode {ino} on device .*: /file: it has no bind"):
        ground.find()
    assert ground.names == []


def test_no_way(ground: Ground, task: Callable[[str], None]) -> None:
    """There is but the fd of another file."""
    ground.watch("file")
    root = ground.detach()
    task(reach(root, "dir/inner"))
    with support.mounted(ground.source, "-t", "tmpfs", "over"):  # and so is out of reach
        pytest.raises(DetachedError, ground.find).match("no mount leads to it")


def test_known_mount(ground: Ground) -> None:
    """Whatever CRIU knows a mount of is its own business."""
    ground.watch("file")
    ground.known = lambda mnt_id: int(mnt_id == support.mount_of(ground.source).mnt_id)
    ground.find()
    assert ground.recorded == []


def test_known_mount_of_another_file(ground: Ground) -> None:
    """A mount of one file shows that file alone."""
    (ground.path / "one").touch()
    bound = ground.source / "file"
    ground.stack.enter_context(support.mounted(ground.path / "one", "--bind", str(bound)))
    ground.known = lambda mnt_id: int(mnt_id == support.mount_of(ground.path / "one").mnt_id)
    ground.watch("file", "dir/inner")
    ground.find()
    assert [link for link, _ in ground.recorded] == ["/dir/inner"]


def test_deleted_where_criu_knows_the_filesystem(
    ground: Ground, task: Callable[[str], None]
) -> None:
    """It is left to CRIU unless a task has it on a detached mount."""
    ground.watch("file", "dir/inner")
    ground.known = lambda mnt_id: int(mnt_id == support.mount_of(ground.source).mnt_id)
    root = ground.detach()
    files = [os.open(ground.source / name, os.O_PATH) for name in ("file", "dir/inner")]
    task(reach(root, "file") + f"; os.open({str(ground.source / 'dir/inner')!r}, 0)")
    names = [ground.name("file", kernel.fstat(root).mnt_id)]
    for name in ("file", "dir/inner"):
        (ground.source / name).unlink()
    watched = ground.begin()
    ground.name_all(watched)
    assert [watched.claim(fd) for fd in files] == [True, False]
    ground.name_all(watched)
    assert (ground.recorded[0][0], ground.names) == ("/file (deleted)", names)
    for fd in files:
        os.close(fd)


def test_each_is_looked_for_once(ground: Ground) -> None:
    ground.watch("file")
    ground.find()
    ground.name_all(ground.watched)
    assert len(ground.names) == 1


def test_pre_dump(ground: Ground) -> None:
    """All that any other process watches gets some name."""
    code = "import ctypes; libc = ctypes.CDLL(None); fd = libc.inotify_init1(0)"
    code += f"; libc.inotify_add_watch(fd, {str(ground.source).encode()!r}, 2)"
    ground.stack.enter_context(process(code))
    criu: Any = SimpleNamespace(watch_name_add=lambda *name: ground.names.append(name))
    pass_by_watches(criu)
    found = ground.source.stat()
    assert (found.st_dev, found.st_ino) in {name[:2] for name in ground.names}
    assert len({name for _, _, name in ground.names}) == len(ground.names)
