"""A filesystem in memory that is made anew, entry by entry against the one that was."""

from __future__ import annotations

import hashlib
import os
import random
import socket
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from ..conftest import MakeScenario
from ..harness import kernel
from ..harness.agent import Check, Task
from ..harness.placement import Bind
from ..harness.scenario import Scenario, difference_of

pytestmark = pytest.mark.detached

ENTRIES = 3000  # of a generated tree
UNCHANGED = Bind(flags=kernel.MS_NOATIME)  # looking at it leaves no trace


def hold_tree(task: Task) -> Check:
    """The top of a tree, an open file and an open directory that were deleted from it."""
    top = os.open(task.path(), os.O_RDONLY)
    file = os.open(task.path("deleted"), os.O_RDWR | os.O_CREAT)
    os.write(file, b"deleted")
    os.unlink(task.path("deleted"))
    os.mkdir(task.path("gone"), 0o750)
    directory = os.open(task.path("gone"), os.O_RDONLY)
    inside = os.open(task.path("gone/inside"), os.O_RDWR | os.O_CREAT)
    os.write(inside, b"inside")
    os.unlink(task.path("gone/inside"))
    os.rmdir(task.path("gone"))
    os.utime(top, ns=(17, 23))
    task.detach()
    return lambda: [
        os.pread(file, 100, 0).decode(),
        os.fstat(file).st_nlink,
        os.pread(inside, 100, 0).decode(),
        oct(os.fstat(directory).st_mode),
        os.listdir(directory),
        len(os.listdir(top)),
    ]


# --- What a tree is made of ---------------------------------------------------------------

NAMES = st.one_of(
    st.binary(min_size=1, max_size=12),
    st.binary(min_size=1, max_size=5).map(lambda name: name * 51),
    st.sampled_from(
        [
            b"new\nline",
            b"\x1b[2J",
            b"\xff\xfe",
            b"\x7f\x01",
            b" ",
            b"-rf",
            b"*",
            b"x (deleted)",
            b"a",
        ]
    ),
    st.text(min_size=1, max_size=40).map(lambda text: text.encode(errors="surrogatepass")),
).filter(
    lambda name: not {0, ord("/")} & set(name) and name not in (b".", b"..") and len(name) < 256
)
SIZES = st.sampled_from([0, 1, 100, 4095, 4096, 4097, 70_000])
TIMES = st.integers(-(1 << 40), 1 << 42) | st.integers(0, 1 << 61)  # nanoseconds
OWNERS = st.sampled_from([0, 1, 1000, 65534, 70000, (1 << 32) - 2])
KINDS = st.sampled_from(
    ["file"] * 4
    + ["directory"] * 3
    + ["sparse", "symlink", "link", "fifo", "socket", "character", "block"]
)


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, Any]:
    """What one entry is."""
    return {
        "kind": draw(KINDS),
        "name": draw(NAMES),
        "size": draw(SIZES),
        "mode": draw(st.integers(0, 0o7777)),
        "owner": (draw(OWNERS), draw(OWNERS)),
        "times": (draw(TIMES), draw(TIMES)),
        "device": os.makedev(draw(st.integers(0, 4095)), draw(st.integers(0, (1 << 20) - 1))),
        "xattrs": draw(
            st.dictionaries(
                st.sampled_from(["user.x", "user.\udcff", "trusted.t", "security.s", "acl", "cap"]),
                st.binary(max_size=30),
                max_size=2,
            )
        ),
    }


def acl(*entries: tuple[int, int, int]) -> bytes:
    """What system.posix_acl_access holds, linux/posix_acl_xattr.h: tag, permissions, id."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NOBODY = 0xFFFFFFFF
ACL = acl((1, 6, NOBODY), (2, 7, 1234), (4, 4, NOBODY), (16, 7, NOBODY), (32, 0, NOBODY))
# struct vfs_cap_data of linux/capability.h: revision 2, cap_net_raw
CAPABILITY = struct.pack("<IIIII", 0x02000000, 1 << 13, 0, 0, 0)


class Grower:
    """Makes a tree of so many entries, each put together from a few shapes."""

    def __init__(self, top: Path, shapes: list[dict[str, Any]], number: int) -> None:
        self.top = os.fsencode(top)
        self.shapes = shapes
        self.random = random.Random(number)
        self.directories = [self.top]
        self.files: list[bytes] = []
        self.made: list[tuple[bytes, dict[str, Any]]] = []

    def grow(self, entries: int) -> None:
        """Make the entries, and then give them what making others in them would change."""
        for number in range(entries):
            shape = {key: self.random.choice(self.shapes)[key] for key in self.shapes[0]}
            directory = self.random.choice(self.directories[-40:])
            name = shape["name"] if number % 3 else b"%d" % number
            path = directory + b"/" + name
            if len(path) < 3500 and not os.path.lexists(path) and self._make(path, shape):
                self.made.append((path, shape))
        for path, shape in reversed(self.made):
            self._dress(path, shape)

    def _make(self, path: bytes, shape: dict[str, Any]) -> bool:
        kind, size = shape["kind"], shape["size"]
        if kind == "directory":
            os.mkdir(path)
            self.directories.append(path)
        elif kind == "symlink":
            os.symlink(shape["name"] * (1 + size % 15), path)
        elif kind == "link":
            if self.files:
                os.link(self.random.choice(self.files), path, follow_symlinks=False)
            return False
        elif kind in ("file", "sparse"):
            with open(path, "wb") as file:
                if kind == "sparse":
                    file.seek(self.random.choice([1 << 12, 1 << 20, 1 << 40]))
                file.write(self.random.randbytes(size))
                file.truncate(file.tell() + (1 << 13 if kind == "sparse" else 0))
            self.files.append(path)
        elif kind == "socket":
            self._make_socket(path)
        else:
            types = {"fifo": stat.S_IFIFO, "character": stat.S_IFCHR, "block": stat.S_IFBLK}
            os.mknod(path, types[kind] | 0o600, shape["device"])
            self.files.append(path)
        return True

    @staticmethod
    def _make_socket(path: bytes) -> None:
        """Its address has 108 bytes; a node has no such limit."""
        os.mknod(path, stat.S_IFSOCK | 0o600)

    def _dress(self, path: bytes, shape: dict[str, Any]) -> None:
        os.chown(path, *shape["owner"], follow_symlinks=False)
        facts = os.lstat(path)
        if not stat.S_ISLNK(facts.st_mode):
            os.chmod(path, shape["mode"])
        for name, value in shape["xattrs"].items():
            self._set_xattr(path, facts.st_mode, name, value)
        os.utime(path, ns=shape["times"], follow_symlinks=False)

    @staticmethod
    def _set_xattr(path: bytes, mode: int, name: str, value: bytes) -> None:
        plain = stat.S_ISREG(mode) or stat.S_ISDIR(mode)
        if name == "acl" and plain:
            os.setxattr(path, "system.posix_acl_access", ACL)
            if stat.S_ISDIR(mode):
                os.setxattr(path, "system.posix_acl_default", ACL)
        elif name == "cap" and stat.S_ISREG(mode):
            os.setxattr(path, "security.capability", CAPABILITY)
        elif (name.startswith("user.") and plain) or name.startswith(("trusted.", "security.")):
            os.setxattr(path, name, value, follow_symlinks=False)


# --- What is seen of it -------------------------------------------------------------------


def portrait(top: bytes) -> dict[str, tuple[object, ...]]:
    """Everything of every entry that a restore can give back, by path."""
    seen: dict[str, tuple[object, ...]] = {}
    first: dict[int, str] = {}
    queue = [b"."]
    for path in queue:
        full = os.path.join(top, path)
        facts = os.lstat(full)
        name = repr(path)
        linked = "" if stat.S_ISDIR(facts.st_mode) else first.setdefault(facts.st_ino, name)
        seen[name] = (
            oct(facts.st_mode),
            facts.st_uid,
            facts.st_gid,
            facts.st_rdev,
            facts.st_nlink,
            facts.st_size if not stat.S_ISDIR(facts.st_mode) else 0,
            facts.st_blocks,
            facts.st_mtime_ns,
            facts.st_atime_ns,
            linked,
            xattrs(full),
            content(full, facts.st_mode),
        )
        if stat.S_ISDIR(facts.st_mode):
            queue += sorted(os.path.join(path, below) for below in os.listdir(full))
    return seen


def xattrs(path: bytes) -> list[tuple[str, bytes]]:
    """All that it has."""
    names = os.listxattr(path, follow_symlinks=False)
    return sorted((name, os.getxattr(path, name, follow_symlinks=False)) for name in names)


def content(path: bytes, mode: int) -> str:
    """A checksum of the data and of where they lie, or a symlink's target."""
    if stat.S_ISLNK(mode):
        return repr(os.readlink(path))
    if not stat.S_ISREG(mode):
        return ""
    digest = hashlib.sha256()
    fd = os.open(path, os.O_RDONLY | os.O_NOATIME)
    try:
        end = 0
        while True:
            try:
                start = os.lseek(fd, end, os.SEEK_DATA)
            except OSError:
                return digest.hexdigest()
            end = os.lseek(fd, start, os.SEEK_HOLE)
            digest.update(b"%d %d " % (start, end))
            for at in range(start, end, 1 << 20):
                digest.update(os.pread(fd, min(1 << 20, end - at), at))
    finally:
        os.close(fd)


def portrait_of(held: Scenario) -> dict[str, tuple[object, ...]]:
    """Of the tree that the process has the top of."""
    return portrait(b"/proc/%d/fd/3/." % held.pid)


def cycle_and_compare(held: Scenario) -> None:
    """Every entry is as it was, seen from outside, and what is deleted, seen from inside."""
    kernel.umount2(held.ground.source, kernel.MNT_DETACH)
    before, answer = portrait_of(held), held.ask()
    held.cycle()
    after = portrait_of(held)
    if after != before:  # pytest's own comparison of thousands of lines takes minutes
        pytest.fail(difference_of(before, after))
    assert held.ask() == answer


# --- The tests ----------------------------------------------------------------------------


@seed(4)
@settings(
    max_examples=3,
    phases=[Phase.generate],
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
)
@given(st.lists(shapes(), min_size=15, max_size=20), st.integers(0, 1 << 32))
def check_generated(
    scenario: Callable[..., Scenario], shapes: list[dict[str, Any]], number: int
) -> None:
    """One tree of thousands of entries."""

    def populate(source: Path) -> None:
        (source / "tree").mkdir()
        grower = Grower(source / "tree", shapes, number)
        grower.grow(ENTRIES)
        assert len(grower.made) > ENTRIES // 3

    held = scenario(binds=[UNCHANGED], populate=populate).start(hold_tree)
    cycle_and_compare(held)
    held.kill()


def test_generated_tree(scenario: MakeScenario) -> None:
    check_generated(scenario)


def populate_extremes(source: Path) -> None:
    """What a generator does not come upon."""
    tree = source / "tree"
    tree.mkdir(mode=0o1777)
    dig(tree, 12)
    with (tree / "large").open("wb") as large:
        for _ in range(20):
            large.write(os.urandom(1 << 20))
        large.seek(1 << 42)
        large.write(b"far")
    (tree / "holes alone").touch()
    os.truncate(tree / "holes alone", 1 << 43)
    (tree / "zeros").write_bytes(bytes(1 << 16))
    (tree / "attribute").touch()
    os.setxattr(tree / "attribute", "trusted.large", os.urandom(60_000))
    for number in range(40):
        os.setxattr(tree / "attribute", f"user.{number}", b"%d" % number)
    names = [tree / f"name {number}" for number in range(300)]
    names[0].write_text("one file with 300 names")
    for name in names[1:]:
        name.hardlink_to(names[0])
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tree / "socket"))
    (tree / "symlink").symlink_to("x" * 4000)
    (tree / "private").mkdir(mode=0)
    (tree / "private" / "secret").write_text("secret")
    os.chmod(tree / "private" / "secret", 0)
    (tree / "inherit").mkdir()
    os.setxattr(tree / "inherit", "system.posix_acl_default", ACL)
    (tree / "inherit" / "heir").touch()
    os.removexattr(tree / "inherit" / "heir", "system.posix_acl_access")


def dig(tree: Path, depth: int) -> None:
    """Directories in each other, with long names."""
    deep = os.open(tree, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d" * 250, dir_fd=deep)
        below = os.open("d" * 250, os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = below
    os.close(os.open("bottom", os.O_CREAT | os.O_RDWR, dir_fd=deep))
    os.close(deep)


def test_extremes(scenario: MakeScenario) -> None:
    cycle_and_compare(scenario(binds=[UNCHANGED], populate=populate_extremes).start(hold_tree))


def test_path_that_is_too_long(scenario: MakeScenario) -> None:
    """Of more than 4095 bytes: no system call takes it at once."""

    def populate(source: Path) -> None:
        (source / "tree").mkdir()
        dig(source / "tree", 17)

    held = scenario(populate=populate).start(hold_tree)
    kernel.umount2(held.ground.source, kernel.MNT_DETACH)
    answer = held.ask()
    held.dump().failed("criu-detached: a filesystem in memory cannot be saved .File name too long")
    assert held.ask() == answer
