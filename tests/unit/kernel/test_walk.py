"""A look at what tasks have, and at what is mounted."""

from __future__ import annotations

import errno
import mmap
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from criu_detached import kernel
from criu_detached.filesystems.types import OVERLAY
from criu_detached.kernel import mountinfo, walk
from criu_detached.kernel.walk import MountTable, Seen, Walk, Walker

from .. import support

HOLD = "import os, socket, sys; {}; print(flush=True); sys.stdin.read()"


@contextmanager
def process(code: str, *fds: int) -> Iterator[int]:
    """A process that does something, and then waits; its pid."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", HOLD.format(code)]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, pass_fds=fds) as running:
        assert running.stdout is not None and running.stdout.readline()
        yield running.pid


@contextmanager
def own_filesystem(path: Path) -> Iterator[int]:
    """A tmpfs with a file and a directory; the device of its superblock."""
    path.mkdir()
    with support.mounted(path, "-t", "tmpfs", "seen"):
        (path / "file").write_text("content")
        (path / "dir").mkdir()
        yield path.stat().st_dev


def nothing_attached() -> MountTable:
    """A table by which all is of interest."""
    return MountTable.of([])


def others(left_out: tuple[int, ...] = (), table: MountTable | None = None) -> Walk:
    return Walker().look_at_others(left_out, table or nothing_attached())


def links(seen: Iterator[Seen], pid: int) -> list[str]:
    return sorted(one.link.partition("-")[0] for one in seen if one.tid == pid and not one.gone)


# --- One task ----------------------------------------------------------------------------------


HELD = (
    "os.chdir({path!r}); a = os.open('file', 0); b = os.open('dir', 0); os.chroot('dir');"
    " c = os.open('/', os.O_PATH)"
)


def test_places_and_fds(tmp_path: Path) -> None:
    """By the same device and mount; a child finds as much as this process."""
    with own_filesystem(tmp_path / "fs") as dev:
        mnt_id = kernel.glance(str(tmp_path / "fs")).mnt_id
        with process(HELD.format(path=str(tmp_path / "fs"))) as pid:
            before = support.open_fds()
            for found in (Walker().look_at_tasks([pid]), others()):
                seen = [one for one in found.on(dev=dev) if one.pid == pid]
                assert [one.link for one in seen].count("cwd") == 1
                assert links(iter(seen), pid) == ["cwd", "fd/3", "fd/4", "fd/5", "root"]
                assert {one.mnt_id for one in seen} == {mnt_id}
                [file] = [one for one in seen if one.link == "fd/3"]
                assert stat.S_ISREG(file.mode) and file.ino == (tmp_path / "fs/file").stat().st_ino
                assert file.path == f"/proc/{pid}/fd/3" and not file.error
                assert list(found.on(dev=dev, mnt_id=mnt_id + 100000)) == []
                assert links(found.on(mnt_id=mnt_id), pid) == links(iter(seen), pid)
                found.close()
            assert support.open_fds() == before


def test_executable_and_mappings(tmp_path: Path) -> None:
    """A mapping that no fd is left of: procfs tells the device, and the link that leads there."""
    with own_filesystem(tmp_path / "fs") as dev:
        code = "import mmap; f = os.open({!r}, 0); m = mmap.mmap(f, 4, prot=1, trackfd=False)"
        with process(code.format(str(tmp_path / "fs/file")) + "; os.close(f)") as pid:
            for found in (Walker().look_at_tasks([pid]), others()):
                [mapping] = [one for one in found.on(dev=dev) if one.pid == pid]
                assert mapping.what == walk.MAPPING
                assert mapping.end - mapping.number == mmap.PAGESIZE
                assert os.stat(mapping.path).st_ino == mapping.ino
        program = tmp_path / "fs/program"
        program.write_bytes(Path("/usr/bin/sleep").read_bytes())
        program.chmod(0o755)
        with subprocess.Popen([program, "infinity"]) as running:
            assert "exe" in links(others().on(dev=dev), running.pid)
            running.kill()


def test_all_fds_of_many(tmp_path: Path) -> None:
    """More than one reading of the directory gives."""
    with own_filesystem(tmp_path / "fs") as dev:
        path = str(tmp_path / "fs/file")
        with process(f"fds = [os.open({path!r}, 0) for _ in range(3000)]") as pid:
            assert len(links(others().on(dev=dev), pid)) == 3000
            assert len(links(Walker().look_at_tasks([pid]).on(dev=dev), pid)) == 3000


# A thread that does something by itself, before the main thread goes on.
THREAD = (
    "import ctypes, threading; done = threading.Event(); "
    "work = lambda: (os.unshare({unshared}), {work}, done.set(), os.read(0, 1), os._exit(0)); "
    "threading.Thread(target=work).start(); done.wait(); {main}"
)
MAIN_ENDS = "print(flush=True); ctypes.CDLL(None).syscall(60, 0)"
CLONE_FS, CLONE_FILES = 0x200, 0x400


@pytest.mark.parametrize(
    ("unshared", "work", "main", "link"),
    [
        (CLONE_FS, "os.chdir({path!r})", "pass", "cwd"),
        (CLONE_FS, "os.chroot({path!r})", "pass", "root"),
        (CLONE_FILES, "os.open({path!r}, 0)", "pass", "fd/"),
        (0, "os.open({path!r}, 0)", MAIN_ENDS, "fd/"),
    ],
    ids=["cwd", "root", "fd", "main thread ended"],
)
def test_threads(tmp_path: Path, unshared: int, work: str, main: str, link: str) -> None:
    """What a thread has for itself is its own; all others are looked at once."""
    with own_filesystem(tmp_path / "fs") as dev:
        work = work.format(path=str(tmp_path / "fs"))
        with process(THREAD.format(unshared=unshared, work=work, main=main)) as pid:
            while main == MAIN_ENDS and ") Z" not in Path(f"/proc/{pid}/stat").read_text():
                time.sleep(0.01)
            for found in (Walker().look_at_tasks([pid]), others()):
                [seen] = [one for one in found.on(dev=dev) if one.pid == pid]
                assert seen.tid != pid and seen.link.startswith(link)
                assert os.path.samefile(seen.path, tmp_path / "fs")
        with process(THREAD.format(unshared=0, work=work, main="pass")) as pid:
            assert {one.tid for one in others().on(dev=dev) if one.pid == pid} <= {pid}


# --- Sockets -----------------------------------------------------------------------------------


def sockets(found: Walk, pid: int) -> list[Seen]:
    return [one for one in found.on() if one.what == walk.SOCKET and one.pid == pid]


def test_bound_sockets(tmp_path: Path) -> None:
    """Of a unix socket it is told what it is bound to, and of the one that was accepted by it."""
    path = tmp_path / "socket"
    code = f"s = socket.socket(1); s.bind({str(path)!r}); s.listen(); n = socket.socket(1);"
    code += "i = socket.socket(2); p = socket.socketpair(); c = socket.socket(1);"
    code += f"c.connect({str(path)!r}); a = s.accept()"
    with process(code) as pid:
        found = sockets(others(), pid)
        assert len(found) == 2 and len({one.socket for one in found}) == 2
        for one in found:
            assert one.dev == path.stat().st_dev and one.ino == path.stat().st_ino & 0xFFFFFFFF
            assert one.end == walk.name_hash(os.fsencode(path))
        path.unlink()
        assert [one.dev for one in sockets(others(), pid)] == [found[0].dev] * 2
        # Of tasks that are dumped the sockets are told as they are.
        plain = sockets(Walker().look_at_tasks([pid]), pid)
        assert len(plain) == 7 and {one.dev for one in plain} == {0}
        assert {one.socket for one in found} < {one.socket for one in plain}


def test_socket_of_a_namespace_without_a_process(tmp_path: Path) -> None:
    """No sock_diag(7) tells of it, so it is asked by itself."""
    path = str(tmp_path / "socket")
    code = "libc = __import__('ctypes').CDLL(None); old = os.open('/proc/self/ns/net', 0);"
    code += f"assert not libc.unshare(1 << 30); s = socket.socket(1); s.bind({path!r});"
    code += "assert not libc.setns(old, 1 << 30); os.close(old)"
    with process(code) as pid:
        [found] = sockets(others(), pid)
        assert found.dev == os.stat(path).st_dev and found.ino == os.stat(path).st_ino & 0xFFFFFFFF
        assert found.mnt_id == kernel.glance(path).mnt_id


def test_socket_of_another_namespace(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    code = "assert not __import__('ctypes').CDLL(None).unshare(1 << 30);"
    with process(f"{code} s = socket.socket(1); s.bind({path!r})") as pid:
        [found] = sockets(others(), pid)
        assert found.dev == os.stat(path).st_dev and not found.mnt_id


def test_socket_that_no_task_has(tmp_path: Path) -> None:
    """One in flight, bound to a file that no attached mount shows."""
    with own_filesystem(tmp_path / "fs") as dev, process("s = socket.socket(1)"):
        one, other = socket.socketpair()
        with socket.socket(socket.AF_UNIX) as bound, one, other:
            bound.bind(str(tmp_path / "fs/socket"))
            inode = os.fstat(bound.fileno()).st_ino
            socket.send_fds(one, [b"x"], [bound.fileno()])
            bound.close()
            found = [seen for seen in others().on(dev=dev) if not seen.pid]
            assert [seen.socket for seen in found] == [inode]
            attached = MountTable.read([])
            assert not any(not seen.pid for seen in others(table=attached).on(dev=dev))


def test_sockets_by_name(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))
        [found] = walk.sockets_named(os.fsencode(path))
        assert found.dev == path.stat().st_dev and found.ino == path.stat().st_ino & 0xFFFFFFFF
        assert found.socket == os.fstat(bound.fileno()).st_ino
    assert walk.sockets_named(os.fsencode(path)) == []
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(b"\0" + os.fsencode(path))
        assert walk.sockets_named(os.fsencode(path)) == []


# --- What is left out --------------------------------------------------------------------------


def test_of_no_interest(tmp_path: Path) -> None:
    """Attached mounts, some processes, and what only the kernel has."""
    with own_filesystem(tmp_path / "fs") as dev:
        mnt_id = kernel.glance(str(tmp_path / "fs")).mnt_id
        code = HELD.format(path=str(tmp_path / "fs"))
        code += "; os.pipe(); os.memfd_create('m'); os.eventfd(0); socket.socketpair()"
        with process(code) as pid:
            everything = others()
            assert not any(seen.dev in Walker()._internal for seen in everything.on())
            table = MountTable.of([(mnt_id, dev, False)])
            assert links(others(table=table).on(dev=dev), pid) == []
            # The id is reused by a mount of another superblock.
            table = MountTable.of([(mnt_id, dev + 1, False)])
            assert len(links(others(table=table).on(dev=dev), pid)) == 5
            table = MountTable.of([(mnt_id, dev + 1, True)])
            assert links(others(table=table).on(dev=dev), pid) == []
            assert links(others((pid,)).on(dev=dev), pid) == []
            assert any(seen.pid == pid for seen in others((1, pid + 1)).on(dev=dev))
        assert os.getpid() not in {seen.pid for seen in others().on()}


def test_one_superblock_alone() -> None:
    """Also one that is left out else, as that of inotify fds."""
    with process("a = os.eventfd(0); b = socket.socket(1); c = os.open('/', 0)") as pid:
        found = Walker().look_for(walk.anonymous_inodes())
        seen = [one for one in found.on() if one.pid == pid]
        assert [os.readlink(one.path) for one in seen] == ["anon_inode:[eventfd]"]
        assert {dev for dev, _ in found.mounts()} <= {0, walk.anonymous_inodes()}


# --- What happens meanwhile --------------------------------------------------------------------


def test_who_ends_is_no_error() -> None:
    """Processes that come and go all the time."""
    with process(
        "[os.fork() or os._exit(0) for _ in range(9)];"
        "print(flush=True);"
        "exec('while True:\\n pid = os.fork() or os._exit(0)\\n os.waitpid(pid, 0)')"
    ) as pid:
        for _ in range(5):
            errors = [seen.error for seen in others().on() if seen.error and not seen.gone]
            assert set(errors) <= {errno.EACCES}  # init, where this machine does not allow it
        os.kill(pid, signal.SIGKILL)


CHAIN = """
import os, sys, time
fd = os.open(sys.argv[1], 0)
print(flush=True)
while True:
    time.sleep(float(sys.argv[2]))
    if os.path.exists(sys.argv[3]):
        os._exit(0)
    if os.fork():
        os._exit(0)
"""


@pytest.mark.parametrize("milliseconds", [1, 5, 30, 100, 250])
def test_chain(tmp_path: Path, milliseconds: int) -> None:
    """Each forks the next and ends: at every look somebody has the file."""
    with own_filesystem(tmp_path / "fs") as dev:
        stop = tmp_path / "stop"
        command = [sys.executable, "-c", CHAIN, str(tmp_path / "fs/file")]
        command += [str(milliseconds / 1000), str(stop)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as first:
            assert first.stdout is not None and first.stdout.readline()
            try:
                for _ in range(12):
                    assert list(others().on(dev=dev))
            finally:
                stop.touch()


RING = """
import os, socket, sys, time
fd = os.open(sys.argv[1], 0)
ring = [socket.socketpair() for _ in range(8)]
print(flush=True)
for place in range(8):
    if os.fork() == 0:
        if place:
            os.close(fd)
        while True:
            if place or fd < 0:
                _, [fd], _, _ = socket.recv_fds(ring[place][0], 1, 1)
            time.sleep(0.02)
            socket.send_fds(ring[(place + 1) % 8][1], [b"x"], [fd])
            os.close(fd)
            fd = -1
os.close(fd)
sys.stdin.read()
os.killpg(0, 9)
"""


def test_passed_on(tmp_path: Path) -> None:
    """An fd goes round: who has run since he was looked at is looked at again."""
    with own_filesystem(tmp_path / "fs") as dev:
        command = [sys.executable, "-c", RING, str(tmp_path / "fs/file")]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, start_new_session=True) as first:
            assert first.stdout is not None and first.stdout.readline()
            found = [bool(list(others().on(dev=dev))) for _ in range(20)]
            assert sum(found) >= 19, found


def test_looked_at_again(tmp_path: Path) -> None:
    """Nothing more is asked of those that did not run."""
    with process("fds = [os.open('/', 0) for _ in range(500)]"):
        time.sleep(0.1)
        found = others()
        listed = sum(name.isdigit() for name in os.listdir("/proc"))
        assert found.looks < 3 * listed


# --- What does not answer ----------------------------------------------------------------------


def test_stale_directory_of_a_process(tmp_path: Path) -> None:
    """An fd of /proc/PID/fd says ENOENT when that has ended, as if it was closed."""
    with process("pass") as ended:
        directory = os.open(f"/proc/{ended}/fd", os.O_RDONLY)
    with process("pass", directory) as pid:
        seen = [one for one in others().on() if one.pid == pid and one.number == directory]
        assert [one.error for one in seen] == [errno.ENOENT]
        assert seen[0].mnt_id == kernel.glance("/proc").mnt_id
        attached = MountTable.read([])
        assert not [one for one in others(table=attached).on() if one.pid == pid]
    os.close(directory)


def test_a_child_that_hangs(tmp_path: Path) -> None:
    """The place where it does is passed over, and told."""
    with own_filesystem(tmp_path / "fs") as dev:
        path = str(tmp_path / "fs/file")
        with process(f"fds = [os.open({path!r}, 0) for _ in range(900)]") as pid:
            found: list[Walk] = []
            walker = Walker(patience=1)
            looking = threading.Thread(
                target=lambda: found.append(walker.look_at_others([], nothing_attached()))
            )
            looking.start()
            stopped = stop_child()
            looking.join()
            late = [seen for seen in found[0].on() if seen.error == errno.ETIMEDOUT]
            assert len(late) == 1
            # Of all else that was seen nothing is lost.
            kept = [seen for seen in found[0].on(dev=dev) if not seen.gone]
            assert len(kept) >= 899 or late[0].pid == pid
    assert not os.path.exists(f"/proc/{stopped}")


def stop_child() -> int:
    """Stop a child that this process has made just now."""
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children")
    before = set(children.read_text().split())
    while True:
        for task in Path("/proc/self/task").iterdir():
            for pid in set((task / "children").read_text().split()) - before:
                time.sleep(0.005)
                os.kill(int(pid), signal.SIGSTOP)
                return int(pid)


# --- Mounts ------------------------------------------------------------------------------------


def read_table() -> MountTable:
    try:
        return MountTable.read([OVERLAY.magic])
    except OSError as error:
        pytest.skip(f"before Linux 6.12, or in a PID namespace: {error}")


def test_table(tmp_path: Path) -> None:
    """What mountinfo shows, and more."""
    with own_filesystem(tmp_path / "fs") as dev:
        before = support.open_fds()
        table = read_table()
        assert support.open_fds() == before
        here = {(mount.mnt_id, mount.dev) for mount in mountinfo.read_mountinfo()}
        assert here <= {(mount.mnt_id, mount.dev) for mount in table}
        [mount] = table.of_superblock(dev)
        assert mount.mnt_id == kernel.glance(str(tmp_path / "fs")).mnt_id
        assert mount.id == kernel.mnt_id_unique(os.open(tmp_path / "fs", os.O_PATH))
        assert dev in table.devices
    assert dev not in read_table().devices


def test_table_of_a_namespace_without_a_process(tmp_path: Path) -> None:
    with own_filesystem(tmp_path / "fs") as dev:
        with process("assert not __import__('ctypes').CDLL(None).unshare(1 << 17)") as pid:
            kept = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY)
        assert len(read_table().of_superblock(dev)) == 2
    assert len(read_table().of_superblock(dev)) == 1
    os.close(kept)


def test_table_of_rows() -> None:
    table = MountTable.of([(7, 3, False), (5, 3, True), (6, 2, False)])
    assert [mount.mnt_id for mount in table] == [5, 6, 7]
    assert table.devices == {2, 3}
    assert list(MountTable.of([])) == [] and not MountTable.of([]).devices


# --- Tasks that are traced ---------------------------------------------------------------------


def test_may_trace() -> None:
    with process("pass") as pid:
        assert walk.may_trace(pid)
        assert not walk.may_trace(1)
        assert not walk.may_trace(os.getpid())
        [grandchild] = [
            int(line)
            for line in subprocess.run(
                ["sh", "-c", "sleep 10 >/dev/null & echo $!"], capture_output=True, check=True
            ).stdout.split()
        ]
        os.kill(grandchild, signal.SIGKILL)
    assert not walk.may_trace(pid)
