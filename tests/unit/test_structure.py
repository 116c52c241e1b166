"""What runs inside CRIU starts fast, and a restored task needs nothing but what is loaded."""

from __future__ import annotations

import _stat
import ast
import posix
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import _cffi_backend
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "plugin"))

from embed import freeze

# Slow to import, or with side effects; a whole dump of one file may cost 25 ms.
UNWANTED = [
    "argparse",
    "asyncio",
    "collections",
    "contextlib",
    "ctypes",
    "dataclasses",
    "enum",
    "functools",
    "google",
    "inspect",
    "locale",
    "logging",
    "pathlib",
    "pwd",
    "random",
    "re",
    "signal",
    "socket",
    "struct",
    "subprocess",
    "tempfile",
    "threading",
    "traceback",
    "typing",
    "warnings",
]


def run(lib: Path, script: str) -> str:
    """Run a script as CRIU's Python is: isolated, without site, with the package's path."""
    backend = str(Path(str(_cffi_backend.__file__)).parent)
    prefix = f"import sys; sys.path[:0] = {[str(lib), backend]!r}\n"
    command = [sys.executable, "-I", "-S", "-c", prefix + script]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_imports(lib: Path) -> None:
    found = run(
        lib,
        "import criu_detached.dump.dump, criu_detached.restore.restore, criu_detached.criu.host\n"
        "print(*sys.modules, sep='\\n')",
    ).split()
    bare = run(lib, "print(*sys.modules, sep='\\n')").split()
    assert "criu_detached.dump.dump" in found
    assert set(UNWANTED) & (set(found) - set(bare)) == set()


# Functions that import: they run in CRIU's own process, before any task exists.
LATE = {
    ("entry", "_the_dump"),
    ("entry", "pre_dump_watches"),
    ("entry", "restore_init"),
    ("dump.context", "contents"),
    ("dump.dump", "_is_left_to_shell_job"),
    ("dump.dump", "_sockets"),
    ("dump.dump", "_watched"),
    ("dump.context", "machine"),
    ("dump.dump", "check_peer"),
    ("dump.files", "_describer"),
    ("dump.files", "_recreated"),
    ("dump.files", "_refuse_types"),
    ("dump.mounts", "_new_anonymous"),
    ("dump.mounts", "_sourceless"),
    ("restore.restore", "_find_provided"),
    ("restore.restore", "_realiser"),
    ("restore.restore", "_socket_names"),
    ("restore.restore", "_trees"),
    ("restore.before_tasks", "_realise_filesystems"),
    ("restore.before_tasks", "_realise_with_data"),
}


def modules() -> dict[str, ast.Module]:
    """The modules that CRIU loads, parsed."""
    found = freeze.package_modules().items()
    return {name.partition(".")[2]: ast.parse(path.read_bytes()) for name, path in found}


def test_no_late_import() -> None:
    """Nothing can be imported in a task, so it is all there before."""
    found = {
        (name, function.name)
        for name, module in modules().items()
        for function in ast.walk(module)
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert found == LATE


# Who may import whom, what is imported for types alone included: a module may know what stands on a
# line below its own, and its own room. What stands beside it on its line it does not know.
LAYERS = """
    entry __main__
    dump.dump restore.restore command
    dump.files restore.before_tasks restore.in_task
    dump.mounts restore.filesystems restore.with_ghosts
    dump.filesystems restore.realise restore.namespace_source restore.user_provided
    dump.kinds restore.files restore.sockets restore.ghosts
    dump.context
    dump.describe restore.source restore.trees restore.inodes
    dump.observe restore.aliases restore.new_files restore.socket_attributes
    dump.inodes restore.context restore.temporary
    dump.writing restore.plan
    dump.open_file restore.checks
    filesystems
    settings terminals
    images criu
    filesystems.types
    paths
    kernel
    errors once
"""


def package() -> dict[str, Path]:
    """All modules of the package by their names within it, but for the package itself."""
    names = {}
    for path in sorted(freeze.PACKAGE.rglob("*.py")):
        parts = path.relative_to(freeze.PACKAGE).with_suffix("").parts
        names[".".join(parts).removesuffix("__init__").removesuffix(".")] = path
    del names[""]
    return names


def imports() -> dict[str, set[str]]:
    """What each module imports of the package, in any form."""
    names = package()
    found: dict[str, set[str]] = {}
    for name, path in names.items():
        full: set[str] = set()
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Import):
                full |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{name}: a relative import"
                full |= {f"{node.module}.{alias.name}" for alias in node.names}
        inner = {each.partition(".")[2] for each in full if each.startswith("criu_detached.")}
        inner = {each if each in names else each.rpartition(".")[0] for each in inner}
        found[name] = inner & set(names) - {name}  # without _kernel, which is C
    return found


def place_of(name: str) -> tuple[int, str]:
    """The line of LAYERS that a module stands on, and its room there."""
    rooms = {
        room: number
        for number, line in enumerate(LAYERS.strip().splitlines())
        for room in line.split()
    }
    fitting = [room for room in rooms if f"{name}.".startswith(f"{room}.")]
    room = max(fitting, key=len, default="")
    # A package itself is no more than what it says of itself.
    assert room or name in ("dump", "restore"), f"{name} has no place in LAYERS"
    return rooms.get(room, 0), room


def may_import(name: str, other: str) -> bool:
    """Tell whether a module stands above another one, or in the same room."""
    line, room = place_of(name)
    below, other_room = place_of(other)
    return line < below or room == other_room


def test_layers() -> None:
    found = {
        (name, other)
        for name, others in imports().items()
        for other in others
        if not may_import(name, other)
    }
    assert found == set()


def test_no_circles() -> None:
    """Not within a room either."""
    left = imports()
    while leaves := {name for name, others in left.items() if not others}:
        left = {name: others - leaves for name, others in left.items() if name not in leaves}
    assert not left


def test_criu_needs_no_command() -> None:
    """Nor do dump and restore know each other, whatever the lines that they stand on."""
    for name, others in imports().items():
        side = name.partition(".")[0]
        allowed = {"entry": {"dump", "restore"}, "__main__": {"command"}}.get(side, {side})
        assert {"dump", "restore", "command"} & {
            each.partition(".")[0] for each in others
        } <= allowed


# What C files may include of other folders of plugin/; the shim is linked with none of them.
INCLUDES = {
    "shim": {"embed/host.h", "kernel/facts.h", "kernel/syscalls.h"},
    "embed": {"fast", "kernel"},
    "fast": {"kernel"},
    "kernel": set[str](),
}


@pytest.mark.parametrize("folder", INCLUDES)
def test_includes(folder: str) -> None:
    plugin = Path(__file__).resolve().parents[2] / "plugin"
    files = [path for path in (plugin / folder).iterdir() if path.suffix in (".c", ".h", ".py")]
    for path in files:
        for name in re.findall(r'^ *# *include "(.*)"', path.read_text(), re.MULTILINE):
            if not (path.parent / name).exists():
                assert (plugin / name).exists(), f"{path}: {name}"
                assert {folder, *INCLUDES[folder]} & {name, name.partition("/")[0]}, (
                    f"{path}: {name}"
                )


def test_packages_are_named() -> None:
    """What pip installs is named in pyproject.toml, and has each folder."""
    root = Path(__file__).resolve().parents[2]
    named = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent for path in freeze.PACKAGE.rglob("__init__.py")}
    found = {".".join(folder.relative_to(freeze.PACKAGE.parent).parts) for folder in folders}
    sources = {path.parent for path in (root / "plugin").rglob("*.c")}
    found |= {f"criu_detached.plugin.{folder.name}" for folder in sources}
    assert set(named) == {*found, "criu_detached.plugin"}


def uses_of(module: str) -> set[str]:
    """The names that the package takes from a module of Python's."""
    return {
        node.attr
        for tree in modules().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        if node.value.id == module
    }


def test_small_os() -> None:
    """Inside CRIU there is not all of ``os`` and ``stat``."""
    assert "open" in uses_of("os")
    assert "S_ISREG" in uses_of("stat")
    assert uses_of("os") <= {"SEEK_SET", "SEEK_CUR", "SEEK_END", "fsencode", *dir(posix)}
    assert uses_of("stat") <= set(dir(_stat))


@pytest.mark.parametrize("module", ["restore.restore", "dump.dump"])
def test_import_has_no_side_effect(lib: Path, module: str) -> None:
    """Neither a file is left open nor a word is said."""
    script = (
        "import os\n"
        "before = sorted(os.listdir('/proc/self/fd'))\n"
        f"import criu_detached.{module}\n"
        "assert sorted(os.listdir('/proc/self/fd')) == before\n"
    )
    assert run(lib, script) == ""


# What is there before the tasks are.
BEFORE = """
import errno, os, stat
from criu_detached import kernel, paths
from criu_detached.criu import host, log
from criu_detached.filesystems import superblock
from criu_detached.images import copying, datafile, record_reader
from criu_detached.kernel.fds import Fd
from criu_detached.restore import checks, context, ghosts, inodes, realise, restore, sockets
from criu_detached.restore import in_task, namespace_source, source, trees, with_ghosts
from criu_detached.errors import DetachedError, quote, reason
from criu_detached.images.records import *

log.set_writer(lambda level, text: None)
tree = os.open(sys.argv[1], os.O_RDONLY)
proc = os.open("/proc", os.O_PATH)
os.mkdir(sys.argv[1] + "/dir")
class Stub:
    bound_sockets = {
        number: BoundSocket(id=number, mnt_id=7, name=b"socket", directory=directory)
        for number, directory in ((1, b"dir"), (2, b"absent\\xff"))
    }
    socket_name_add = staticmethod(lambda number, name, deleted: None)
Stub.criu = Stub.fds = Stub
names = sockets.SocketNames(Stub, Stub)
class StubTrees:
    open = staticmethod(lambda mnt_id: trees.Realised(Fd(os.dup(tree)), True, []))
"""

# From here on nothing may be imported; every path, also that of an error, must do.
TASK = """
imported = []
sys.addaudithook(lambda event, args: imported.append(args[0]) if event == "import" else None)
for place in (sys.meta_path, sys.path, sys.path_hooks):
    place.clear()
sys.path_importer_cache.clear()

def attempt(work):
    try:
        return work()
    except (OSError, DetachedError) as error:
        str(error)

for work in works:
    attempt(work)
print(*imported)
"""

OPENING = """
def realised(mount):
    realise.Realiser().realise(source.Source(mount, tree, True), context.ProcessFds(-1))

works = [
    lambda: paths.open_at(tree, b"dir"),
    lambda: paths.open_at(tree, b"absent"),
    lambda: paths.open_mountpoint(tree, b"/dir"),
    lambda: kernel.clone_mount(tree),
    lambda: kernel.open_by_handle(tree, kernel.name_to_handle(tree), os.O_PATH),
    lambda: record_reader.read_records(tree),
    lambda: checks.check_mount(Mount(origin=9)),
    lambda: realised(
        Mount(
            root_type=stat.S_IFDIR,
            superblock=superblock.superblock_of(tree, b"fs"),
            bind_source=BindSource(mountpoint=b"/dir", path=b"."),
        ),
    ),
    lambda: realised(Mount(bind_source=BindSource(mountpoint=b"/absent\\xff", path=b"."))),
    lambda: namespace_source._open_namespace_of(proc, kernel.fstat(tree).mnt_id),
    lambda: namespace_source._seen_here([b"0 0 1"], proc, "uid"),
    lambda: names.enter(1, StubTrees),
    lambda: names.enter(2, StubTrees),
    lambda: names.enter(3, StubTrees),
    lambda: quote(b"\\xff\\n\\0").encode("ascii", "backslashreplace"),
    lambda: "\\u20ac\\udcff".encode("ascii", "backslashreplace"),
    lambda: [reason(number) for number in range(140)],
    lambda: f"{1:#x} {os.makedev(1, 2)}",
]
"""

# Deleted files: of each kind, and what goes wrong with one.
GHOSTS = """
file = os.open(sys.argv[1] + "/file", os.O_RDWR | os.O_CREAT)
os.write(file, b"content")
at, size = datafile.DataFileWriter(tree).add(file, 7)
reader = datafile.DataFileReader(datafile.open_data(tree))

def ghost(path, mode, **inode):
    inode = Inode(uid=os.getuid(), gid=os.getgid(), **inode)
    return Ghost(file=File(path=path, mode=mode, rdev=os.makedev(1, 5)), inode=inode)

def linked(alias, ino, handle=None):
    return Ghost(file=File(path=b"linked", mode=0o100640, ino=ino, handle=handle), alias=alias)

handle = kernel.name_to_handle(file)
color = [Xattr(name=b"trusted.color\\xff", value=b"blue")]
good = [
    ghost(b"regular\\xff", 0o100640, size=7, data_at=at, data_size=size, xattrs=color),
    ghost(b"file", 0o100640, mtime=Time(sec=(1 << 64) - 1, nsec=999999999)),
    ghost(b"gone/#5", 0o100640, size=7, data_at=at, data_size=size),
    ghost(b"sub", 0o40750, xattrs=color),
    ghost(b"sub/pipe", 0o10640),
    ghost(b"device", 0o20640),
    ghost(b"link", 0o120777, target=b"\\xff", xattrs=color),
    linked(b"file", os.fstat(file).st_ino),
    linked(b"absent", os.fstat(file).st_ino, Handle(type=handle[0], bytes=handle[1])),
]
good[2].unnamed = 1
bad = [
    ghost(b"damaged", 0o100640, size=5, data_at=at, data_size=size),
    ghost(b"n" * 300, 0o40750),
    ghost(b"attribute", 0o100640, xattrs=[Xattr(name=b"\\xff", value=b"x")]),
    linked(b"absent", 5),
    linked(b"dir", 5, Handle(type=1, bytes=b"x")),
]
hostile = [
    ghost(b"../\\xff", 0o100640),
    ghost(b"x", 0o120777, target=b"\\0"),
    ghost(b"x", 0o40750, xattrs=[Xattr()]),
]

def make(wanted):
    clone = Fd(os.open(sys.argv[1], os.O_RDONLY))
    with ghosts.GhostBuilder(clone, context.ProcessFds(proc, reader), True) as builder:
        builder.make_root(b"dir/new", stat.S_IFDIR, None)
        made = [(each, builder.make(each, tree, paths.ROOT)) for each in wanted]
    inodes.give_attributes(made, proc)
    return made

refused = []

# Put something in the place of what is there: a name that is not there is an error.
def replace(owner, name, value):
    there = getattr(owner, name)
    setattr(owner, name, value)
    return there

# Work while a function fails.
def with_fault(name, number, work):
    def refuse(*arguments, **names):
        refused.append((name, number))
        raise OSError(number, os.strerror(number))

    there = replace(os, name, refuse)
    try:
        attempt(work)
    finally:
        replace(os, name, there)

# From here on small files, too, are copied by copy_file_range(2) first.
def share_more():
    replace(copying, "BUFFER", copying.BUFFER[:2])
    replace(copying, "_may_share", lambda *fds: True)

def realised(*ghosts):
    mount = Mount(
        origin=BIND_SOURCE,
        root_type=stat.S_IFDIR,
        superblock=superblock.superblock_of(tree, b"fs"),
        bind_source=BindSource(mountpoint=b"/dir", path=b"new"),
        root_deleted=1,
    )
    realiser = with_ghosts.GhostRealiser({mount.mnt_id: list(ghosts)})
    realiser.realise(source.Source(mount, tree, True), context.ProcessFds(proc, reader))

# Of what is copied, and of what is shared.
faults = [
    ("ftruncate", errno.EFBIG),
    ("preadv", errno.EIO),
    ("pwrite", errno.ENOSPC),
    ("copy_file_range", errno.ENOSPC),
    ("copy_file_range", errno.EXDEV),
]
counts = []
works = [
    lambda: [attempt(lambda: checks.check_ghost(each, reader)) for each in good + bad + hostile],
    lambda: counts.append(len(make(sorted(good, key=ghosts.depth)))),
    lambda: [attempt(lambda: make([each])) for each in bad],
    lambda: [with_fault(*fault, lambda: counts.append(len(make(good)))) for fault in faults[:3]],
    share_more,
    lambda: counts.append(len(make(good))),
    lambda: [with_fault(*fault, lambda: counts.append(len(make(good)))) for fault in faults[3:]],
    lambda: realised(ghost(b"one", 0o100640), ghost(b"two/three", 0o120777, target=b"x")),
    lambda: realised(ghost(b"one", 0o100640), bad[0]),
    lambda: datafile.open_data(proc),
    lambda: datafile.DataFileReader(os.open("/dev/null", os.O_RDONLY)),
]
"""

# As root, all of this works: twice, and once where the kernel cannot share data (EXDEV).
GHOSTS_WORKED = """
assert os.getuid() or counts == [len(good)] * 3, counts
assert os.getuid() or set(refused) == set(faults), refused
assert os.getuid() or sorted(os.listdir(tree)) == [datafile.NAME, "dir", "file"], os.listdir(tree)
"""


@pytest.mark.parametrize(
    ("works", "check"), [(OPENING, ""), (GHOSTS, GHOSTS_WORKED)], ids=["opening", "ghosts"]
)
def test_nothing_is_imported_in_a_task(lib: Path, tmp_path: Path, works: str, check: str) -> None:
    backend = str(Path(str(_cffi_backend.__file__)).parent)
    script = f"import sys; sys.path[:0] = {[str(lib), backend]!r}\n" + BEFORE + works + TASK
    command = [sys.executable, "-I", "-S", "-c", script + check, str(tmp_path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")
