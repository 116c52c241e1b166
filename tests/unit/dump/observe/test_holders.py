"""What other processes hold on a mount."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from criu_detached import kernel
from criu_detached.dump.observe import processes, trees
from criu_detached.dump.observe.holders import attached_mount, outside_holder
from criu_detached.dump.observe.processes import (
    files_of,
    held_directories,
    held_files,
    is_tree_held,
)

from ... import support

HOLD = "import os, sys; {}; print(flush=True); sys.stdin.read()"


@contextmanager
def process(code: str, *fds: int) -> Iterator[int]:
    """A process that does something, and then waits; its pid."""
    command = [sys.executable, "-c", HOLD.format(code)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, pass_fds=fds) as running:
        assert running.stdout is not None
        running.stdout.readline()
        yield running.pid


def links(mnt_id: int) -> list[str]:
    """The links of the files that are found."""
    return [os.readlink(f"/proc/self/fd/{fd}") for fd in held_files(mnt_id)]


def test_held_files(tmp_path: Path) -> None:
    """Open files and the working directory, of this mount alone."""
    (tmp_path / "source" / "dir").mkdir(parents=True)
    (tmp_path / "source" / "file").write_text("content")
    (tmp_path / "mnt").mkdir()
    with support.detached(tmp_path / "mnt", tmp_path / "source") as root:
        mnt_id = kernel.fstat(root).mnt_id
        assert links(mnt_id) == []  # what this process holds does not count
        held = f"os.chdir('/proc/{os.getpid()}/fd/{root}/dir'); os.open('../file', 0)"
        before = support.open_fds()
        with process(held):
            assert sorted(links(mnt_id)) == ["/dir", "/file"]
            attached = support.mount_of(tmp_path).mnt_id
            assert not {"/dir", "/file"} & set(links(attached))
        assert links(mnt_id) == []
        assert support.open_fds() == before


def test_deleted_files_are_told(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").touch()
    (tmp_path / "mnt").mkdir()
    with support.detached(tmp_path / "mnt", tmp_path / "source") as root:
        fd = os.open("file", os.O_RDONLY, dir_fd=root)
        (tmp_path / "source" / "file").unlink()
        with process("pass", fd):
            assert links(kernel.fstat(root).mnt_id) == ["/file (deleted)"]
        os.close(fd)


def test_walk_that_is_left_early(tmp_path: Path) -> None:
    """The first is enough for a dump; its fd is closed all the same."""
    with support.opened(tmp_path) as held, process("pass", held):
        before = set(support.open_fds())
        walk = held_files(kernel.fstat(held).mnt_id)
        assert next(walk) not in before
        walk.close()  # type: ignore[attr-defined]
        assert set(support.open_fds()) == before


def test_directories(tmp_path: Path) -> None:
    """One of each mount that is not known."""
    for name in ("source/one", "source/two", "mnt"):
        (tmp_path / name).mkdir(parents=True)
    with support.detached(tmp_path / "mnt", tmp_path / "source") as root:
        mnt_id = kernel.fstat(root).mnt_id
        opened = [f"os.open('/proc/{os.getpid()}/fd/{root}/{name}', 0)" for name in ("one", "two")]
        with process("; ".join(opened)):
            known: set[int] = set()
            found = [kernel.fstat(fd).mnt_id for fd in held_directories(known)]
            assert found.count(mnt_id) == 1 and set(found) == known
            assert mnt_id not in {kernel.fstat(fd).mnt_id for fd in held_directories({mnt_id})}


def test_tree_fd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An O_PATH fd of the root without another flag, in a process that is dumped."""
    (tmp_path / "source" / "dir").mkdir(parents=True)
    (tmp_path / "mnt").mkdir()
    with support.detached(tmp_path / "mnt", tmp_path / "source") as root:
        mnt_id = kernel.fstat(root).mnt_id
        path = f"/proc/{os.getpid()}/fd/{root}"
        other = f"os.chdir('{path}'); os.open('{path}', 0); os.open('{path}/dir', os.O_PATH)"
        other += f"; os.open('{path}/.', os.O_PATH | os.O_DIRECTORY)"
        with process(other) as pid:
            monkeypatch.setattr(processes, "is_traced", lambda process: process == pid)
            assert not is_tree_held(mnt_id)
        with process(f"os.open('{path}/.', os.O_PATH)") as pid:
            monkeypatch.setattr(processes, "is_traced", lambda process: process == pid)
            assert is_tree_held(mnt_id)
            monkeypatch.setattr(processes, "is_traced", lambda process: False)
            assert not is_tree_held(mnt_id)


@contextmanager
def own_filesystem(path: Path) -> Iterator[int]:
    """A tmpfs with two files; the device of its superblock."""
    path.mkdir()
    with support.mounted(path, "-t", "tmpfs", "held"):
        for name in ("one", "two"):
            (path / name).write_text("content")
        yield path.stat().st_dev


MAPPED = "import mmap; fd = os.open({!r}, 0); m = mmap.mmap(fd, 4, prot=1, trackfd=False)"


def test_files_of_a_filesystem(tmp_path: Path) -> None:
    """Those that are mapped and not open as well."""
    with own_filesystem(tmp_path / "fs") as dev:
        assert list(files_of(dev)) == []
        mapped = MAPPED.format(str(tmp_path / "fs" / "one")) + "; os.close(fd)"
        with process(f"{mapped}; os.chdir({str(tmp_path / 'fs')!r}); os.open('two', 0)"):
            found = [os.path.basename(os.readlink(f"/proc/self/fd/{fd}")) for fd in files_of(dev)]
        assert sorted(found) == ["fs", "one", "two"]


def test_outside_holder(tmp_path: Path) -> None:
    with own_filesystem(tmp_path / "fs") as dev:
        assert outside_holder(dev) is None
        with process(f"os.open({str(tmp_path / 'fs' / 'one')!r}, 0)") as pid:
            assert outside_holder(dev) == f"process {pid}"
        with process(MAPPED.format(str(tmp_path / "fs" / "one")) + "; os.close(fd)") as pid:
            assert outside_holder(dev) == f"process {pid}"
        bound = f"s = socket.socket(1); s.bind({str(tmp_path / 'fs' / 'socket')!r})"
        listening = "s.listen(); c = socket.socket(1); c.connect(s.getsockname()); s = s.accept()"
        for last in ("pass", "os.unlink(s.getsockname())", listening):
            with process(f"import socket; {bound}; {last}") as pid:
                assert outside_holder(dev) == f"process {pid}"
                found = [os.readlink(f"/proc/self/fd/{fd}") for fd in files_of(dev)]
                assert len(found) == 1 and "/socket" in found[0]
            (tmp_path / "fs" / "socket").unlink(missing_ok=True)
        with process(f"os.chdir({str(tmp_path / 'fs')!r})") as pid:
            assert outside_holder(dev) == f"process {pid}"
        assert outside_holder(dev) is None


# A thread that does something by itself, before the main thread goes on.
THREAD = (
    "import ctypes, socket, threading; done = threading.Event(); "
    "work = lambda: (os.unshare({unshared}), {work}, done.set(), os.read(0, 1), os._exit(0)); "
    "threading.Thread(target=work).start(); done.wait(); {main}"
)
MAIN_ENDS = "print(flush=True); ctypes.CDLL(None).syscall(60, 0)"


@pytest.mark.parametrize(
    ("unshared", "work", "main"),
    [
        (0x200, "os.chdir({path!r})", "pass"),  # CLONE_FS
        (0x200, "os.chroot({path!r})", "pass"),
        (0x400, "os.open({path!r}, 0)", "pass"),  # CLONE_FILES
        (0x400, "globals().update(s=socket.socket(1)), s.bind({path!r} + '/s')", "pass"),
        (0, "os.open({path!r}, 0)", MAIN_ENDS),
    ],
    ids=["cwd", "root", "fd", "socket", "main thread ended"],
)
def test_thread_of_an_outside_holder(tmp_path: Path, unshared: int, work: str, main: str) -> None:
    """It may have what the main thread has not."""
    with own_filesystem(tmp_path / "fs") as dev:
        work = work.format(path=str(tmp_path / "fs"))
        with process(THREAD.format(unshared=unshared, work=work, main=main)) as pid:
            before = support.open_fds()
            found = outside_holder(dev)
            assert found is not None and re.fullmatch(rf"thread \d+ of process {pid}", found)
            assert support.open_fds() == before
        assert outside_holder(dev) is None


def test_namespace_of_a_thread(tmp_path: Path) -> None:
    """It has what is mounted nowhere else."""
    with own_filesystem(tmp_path / "fs") as dev:
        code = THREAD.format(unshared=0x20000, work="0", main="pass")  # CLONE_NEWNS
        running = process(code)
        pid = running.__enter__()
    try:
        found = attached_mount(dev)
        assert found is not None and "in the mount namespace of process" in found
        assert not found.endswith(f" {pid}")
    finally:
        running.__exit__(None, None, None)
    assert attached_mount(dev) is None


def test_attached_mount(tmp_path: Path) -> None:
    with own_filesystem(tmp_path / "fs") as dev:
        found = attached_mount(dev)
        assert found == f"{tmp_path}/fs where criu runs"
    assert attached_mount(dev) is None


def test_holder_of_a_tree(tmp_path: Path) -> None:
    """A process may have no file of a filesystem, and one of a tree that it is mounted in."""
    (tmp_path / "tree" / "dir" / "child").mkdir(parents=True)
    with own_filesystem(tmp_path / "fs") as dev:
        with support.mounted(tmp_path / "tree" / "dir" / "child", "--bind", str(tmp_path / "fs")):
            flags = kernel.OPEN_TREE_CLONE | kernel.OPEN_TREE_CLOEXEC | 0x8000
            tree = kernel.open_tree(-100, os.fsencode(tmp_path / "tree"), flags)
        if not trees.view(tree):
            pytest.skip("this kernel (before 6.15) clones no anonymous mount")
        before = support.open_fds()
        assert outside_holder(dev) is None
        other = os.open("dir", os.O_PATH, dir_fd=tree)
        with process("pass", other) as pid:
            assert outside_holder(dev) == f"process {pid}"
        os.close(other)
        assert outside_holder(dev) is None
        assert support.open_fds() == before
        os.close(tree)
