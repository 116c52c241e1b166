"""What several unit tests need."""

from __future__ import annotations

import ctypes
import fcntl
import gc
import importlib.util
import os
import shutil
import stat
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

from criu_detached import kernel
from criu_detached.criu.criu import Criu
from criu_detached.criu.fast_path import FastPath
from criu_detached.criu.fd_store import FdStore
from criu_detached.criu.host import Host
from criu_detached.criu.shared_numbers import SharedNumbers
from criu_detached.errors import DetachedError
from criu_detached.images.records import (
    BIND_SOURCE,
    BindSource,
    File,
    Filesystem,
    Mount,
    Superblock,
)
from criu_detached.kernel import mountinfo
from criu_detached.kernel.fds import Fd


def compile_schema(source: Path, output: Path) -> ModuleType:
    """Compile the schema with protoc and import what it made."""
    if not shutil.which("protoc"):
        pytest.skip("needs protoc")
    command = ["protoc", f"--proto_path={source}", f"--python_out={output}", "criu_detached.proto"]
    subprocess.run(command, check=True)
    spec = importlib.util.spec_from_file_location("schema", output / "criu_detached_pb2.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def mounted(path: Path, *arguments: str) -> Iterator[None]:
    """Mount something at a path for a while; the test is skipped where that is not allowed."""
    made = subprocess.run(["mount", *arguments, path], check=False, capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"can't mount: {made.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


def mount_of(path: Path) -> mountinfo.MountInfo:
    """The attached mount that a path is on."""
    with_id = {mount.mnt_id: mount for mount in mountinfo.read_mountinfo()}
    fd = os.open(path, os.O_PATH)
    try:
        text = Path(f"/proc/self/fdinfo/{fd}").read_text()
    finally:
        os.close(fd)
    return with_id[int(text.split("mnt_id:")[1].split()[0])]


@contextmanager
def opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    """An fd of a file, for a while."""
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def inotify(*watched: Path, follow: bool = True) -> Iterator[int]:
    """An inotify fd that watches files, for a while."""
    libc = ctypes.CDLL(None)
    fd = libc.inotify_init1(os.O_CLOEXEC)
    try:
        for path in watched:
            mask = 0x2 if follow else 0x2000002  # IN_MODIFY, IN_DONT_FOLLOW
            assert libc.inotify_add_watch(fd, os.fsencode(path), mask) > 0
        yield fd
    finally:
        os.close(fd)


def names_in(root: Path) -> dict[str, tuple[int, int]]:
    """Every name beneath a directory, and its own, with inode and time of modification."""
    found = {}
    for path in [root, *root.rglob("*")]:
        facts = path.lstat()
        found[str(path)] = (facts.st_ino, facts.st_mtime_ns)
    return found


@contextmanager
def detached(path: Path, source: Path) -> Iterator[int]:
    """An O_PATH fd of the root of a lazily unmounted bind mount of a directory or file."""
    with mounted(path, "--bind", str(source)):
        fd = os.open(path, os.O_PATH)
    try:
        yield fd
    finally:
        os.close(fd)


def clone_mount(fd: int) -> Fd:
    """A clone of the mount that a directory is on; the test is skipped where none may be made."""
    try:
        return kernel.clone_mount(fd)
    except PermissionError:
        pytest.skip("needs CAP_SYS_ADMIN")


def unlock_terminal(master: int) -> str:
    """Let the slave of a new terminal be opened; returns its name in its devpts."""
    fcntl.ioctl(master, 0x40045431, struct.pack("i", 0))  # TIOCSPTLCK
    (number,) = struct.unpack("i", fcntl.ioctl(master, 0x80045430, bytes(4)))  # TIOCGPTN
    return str(number)


# What a restore opens of the files that make_files() makes, and how.
OPENED = [
    ("file", os.O_RDONLY),
    ("dir/file", os.O_RDWR | os.O_APPEND),
    ("file", os.O_PATH),
    ("dir", os.O_RDONLY | os.O_DIRECTORY),
    (".", os.O_RDONLY),
    ("link", os.O_PATH | os.O_NOFOLLOW),
    ("fifo", os.O_RDWR | os.O_NONBLOCK),
]


def make_files(directory: Path) -> None:
    """Files of several kinds."""
    (directory / "dir").mkdir()
    for name in ("file", "dir/file"):
        (directory / name).write_text("content")
    (directory / "link").symlink_to("dir/file")
    os.mkfifo(directory / "fifo")


def file_record(directory: Path, name: str, **changes: object) -> File:
    """The record of a file, with something changed."""
    found = (directory / name).lstat()
    record = File(
        ino=found.st_ino,
        dev=found.st_dev,
        mode=found.st_mode,
        rdev=found.st_rdev,
        path=name.encode(),
        size=found.st_size if stat.S_ISREG(found.st_mode) else 0,
    )
    for field, value in changes.items():
        setattr(record, field, value)
    return record


def open_fds() -> dict[int, str]:
    """This process's fds, and where they lead."""
    gc.collect()  # an earlier test's traceback may keep a generator, and that an fd
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the fd of the listing itself
    return found


def compile_parts(plugin: Path, library: Path, parts: tuple[str, ...], test: str) -> Path:
    """Compile some C files of the plugin, and what tests them, as a library of its own.

    Args:
        plugin: the directory of the plugin's sources.
        library: the file to write.
        parts: the C files, without their suffix.
        test: C code that goes with them.
    """
    if not shutil.which("cc"):
        pytest.skip("needs a C compiler")
    source = library.with_suffix(".c")
    source.write_text(test)
    command = ["cc", "-O1", "-g", "-shared", "-fPIC", f"-I{plugin}", "-pthread", "-o", str(library)]
    subprocess.run(
        [*command, *(str(plugin / f"{part}.c") for part in parts), str(source)], check=True
    )
    return library


# The fast path of a restore, with a CRIU that has one tree fd only.
KNOWN_FILES = (
    "fast/known_files",
    "fast/known_index",
    "fast/known_mounts",
    "fast/cached_fds",
    "fast/file_record",
    "kernel/shared",
)
KNOWN_FILES_TEST = """
#include "fast/known_files.h"
#include <unistd.h>
static int tree = -1;
static int image_dir(void) { return 3; }
static int fdstore_get(int id) { (void)id; return dup(tree); }
static int inherit_fd_get(const char *key) { (void)key; return dup(tree); }
static const struct fd_sources criu = {
	.image_dir = image_dir, .fdstore_get = fdstore_get, .inherit_fd_get = inherit_fd_get,
};
int test_open(int fd, const char *name, int flags)
{
	tree = fd;
	return known_file_open(name, flags, &criu);
}
"""


def compile_known_files(plugin: Path, output: Path) -> Path:
    """Compile the C part of the restore as a library of its own."""
    return compile_parts(plugin, output / "known_files.so", KNOWN_FILES, KNOWN_FILES_TEST)


class KnownFiles:
    """The C part of the restore. It has static data, so each object loads a copy of its own."""

    def __init__(self, library: Path, scratch: Path) -> None:
        copy = scratch / f"known_files_{len(list(scratch.glob('known_files_*')))}.so"
        shutil.copyfile(library, copy)
        self._lib = ctypes.CDLL(str(copy))
        self._data: object = None

    def mount_add(self, mnt_id: int, key: bytes | None, shared: int, keeps_inodes: bool) -> None:
        """known_mount_add()."""
        assert self._lib.known_mount_add(ctypes.c_uint32(mnt_id), key, shared, keeps_inodes) == 0

    def load(self, data: bytes) -> int:
        """known_files_load(), of a buffer that ends where the data does."""
        self._data = ctypes.create_string_buffer(data, len(data))  # it must stay in place
        return int(self._lib.known_files_load(self._data, ctypes.c_size_t(len(data))))

    def open(self, tree: int, name: bytes, flags: int) -> int:
        """known_file_open(), with a tree fd for every mount."""
        return int(self._lib.test_open(tree, name, flags))

    def may_keep(self, allowed: bool) -> None:
        """known_files_may_keep()."""
        self._lib.known_files_may_keep(ctypes.c_bool(allowed))

    def drop_cached_fds(self) -> None:
        """known_files_drop_cached_fds()."""
        self._lib.known_files_drop_cached_fds()


class StandInCriu(Criu):
    """CRIU in one process, with its own root for that of every restored namespace."""

    def __init__(self, image_dir: int, root: Path) -> None:
        self.directory = image_dir
        self.root = root
        self.roots: list[int] = []
        self.lines: list[tuple[int, str]] = []
        self.in_user_namespace = False
        self.id_shift = 0, 0  # of users and groups, in the dumped user namespace
        self.options: list[bytes] = []
        self.socket_names: dict[int, tuple[bytes, bool]] = {}
        self.mount_known: Callable[[int], int] = lambda mnt_id: 0

    def log(self, level: int, text: str) -> None:
        self.lines.append((level, text))

    def image_dir(self) -> int:
        return self.directory

    def dumps_mount_namespace(self) -> bool:
        return False

    def dumps_user_namespace(self) -> bool:
        return self.in_user_namespace

    def userns_ids(self, uid: int, gid: int) -> tuple[int, int]:
        return uid + self.id_shift[0], gid + self.id_shift[1]

    def plugin_options(self) -> list[bytes]:
        return self.options

    def need_plugin(self) -> int:
        return 0

    def flushes(self) -> bool:
        return False

    def mntns_root(self, mnt_id: int) -> int:
        fd = os.open(self.root, os.O_PATH)
        self.roots.append(fd)  # CRIU's own, closed in the end
        return fd

    def socket_name_add(self, number: int, name: bytes, deleted: bool) -> None:
        self.socket_names[number] = (name, deleted)


class StandInFastPath(FastPath):
    """The fast path: at dump it takes no file, at restore it is the C part itself."""

    def __init__(self, known_files: KnownFiles) -> None:
        self.known_files = known_files
        self.recorded: dict[tuple[int, int], tuple[int, bytes]] = {}

    def recorded_file_add(self, mnt_id: int, ino: int, dev: int, path: bytes) -> None:
        self.recorded[mnt_id, ino] = dev, path

    def recorded_file_find(self, mnt_id: int, ino: int) -> tuple[int, bytes] | None:
        return self.recorded.get((mnt_id, ino))

    def known_mount_add(
        self, mnt_id: int, key: bytes | None, shared: int, keeps_inodes: bool
    ) -> None:
        self.known_files.mount_add(mnt_id, key, shared, keeps_inodes)

    def known_files_load(self, data: bytes) -> bool:
        return self.known_files.load(data) >= 0


class StandInNumbers(SharedNumbers):
    """The numbers that tasks share, of one process."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.held: set[int] = set()  # locks

    def alloc(self, count: int) -> None:
        self.numbers = [-1] * count

    def lock(self, index: int) -> None:
        assert index not in self.held
        self.held.add(index)

    def unlock(self, index: int) -> None:
        self.held.remove(index)

    def get(self, index: int) -> int:
        return self.numbers[index]

    def set(self, index: int, value: int) -> None:
        self.numbers[index] = value


class StandInFds(FdStore):
    """The fds that CRIU keeps."""

    def __init__(self) -> None:
        self.inherited: dict[bytes, int] = {}
        self.stored: list[int] = []

    def add(self, fd: int) -> int:
        self.stored.append(os.dup(fd))
        return len(self.stored) - 1

    def get(self, number: int) -> Fd:
        return Fd(os.dup(self.stored[number]))

    def add_inherited(self, fd: Fd, key: bytes) -> None:
        self.inherited[key] = fd.release()

    def get_inherited(self, key: bytes) -> Fd:
        if key not in self.inherited:
            raise DetachedError("no such inherited fd")
        return Fd(os.dup(self.inherited[key]))


class StandInHost(Host):
    """CRIU and the C parts as the package sees them, in one process."""

    criu: StandInCriu
    fast_path: StandInFastPath
    shared: StandInNumbers
    fds: StandInFds

    def __init__(self, image_dir: int, known_files: KnownFiles, root: Path = Path("/")) -> None:
        self.criu = StandInCriu(image_dir, root)
        self.fast_path = StandInFastPath(known_files)
        self.shared = StandInNumbers()
        self.fds = StandInFds()

    def kept(self) -> list[int]:
        """The fds that CRIU has for itself."""
        return [*self.fds.stored, *self.criu.roots]

    def close(self) -> None:
        """Let go of all fds that were given."""
        for fd in [*self.fds.inherited.values(), *self.kept()]:
            os.close(fd)


def memory_record(number: int, fs_type: str = "tmpfs", options: str = "") -> Filesystem:
    """The record of a filesystem in memory, with options as mount(8) takes them."""
    return Filesystem(
        id=number,
        superblock=Superblock(fs_type=fs_type.encode()),
        source=b"source",
        options=[option.encode() for option in options.split(",") if option],
    )


def good_mount(**changes: object) -> Mount:
    """A record that a dump could write, with something changed."""
    mount = Mount(
        mnt_id=300,
        origin=BIND_SOURCE,
        root=b"/tree",
        root_type=stat.S_IFDIR,
        attr=kernel.MOUNT_ATTR_NOSUID,
        superblock=Superblock(fs_type=b"tmpfs", magic=0x01021994),
        bind_source=BindSource(mnt_id=30, mountpoint=b"/mnt", path=b"tree"),
    )
    for name, value in changes.items():
        setattr(mount, name, value)
    return mount
