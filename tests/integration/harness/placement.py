"""Where a process and its bind source are, and how CRIU is told so."""

from __future__ import annotations

import enum
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from . import kernel

INSIDE = Path("/mnt")  # where a process in a namespace of its own sees the base directory
USERNS_ROOT = 100000  # what root of a user namespace is outside of it
USERNS_MAP = f"0 {USERNS_ROOT} 65536\n"


class Placement(enum.Enum):
    """A row of the issue's list: whose mount namespace, and where the bind source is."""

    HOST = "host"  # the runner's namespace, which is not dumped
    NAMESPACE = "namespace"  # a dumped namespace, the source mounted from outside (a volume)
    NAMESPACE_TMPFS = "namespace-tmpfs"  # a dumped namespace, the source made by CRIU anew
    HOST_SOURCE = "host-source"  # a dumped namespace, the source on the host alone

    @property
    def own_namespace(self) -> bool:
        """Whether the process has a mount namespace of its own."""
        return self is not Placement.HOST


@dataclass(frozen=True)
class Shape:
    """What is bind-mounted: a path below the source, and where the tree is seen from there."""

    name: str
    bound: str
    prefix: str | None  # None: a single file is mounted

    @property
    def is_file(self) -> bool:
        """Whether the mount is that of a single file."""
        return self.prefix is None


DIRECTORY = Shape("directory", "", "tree")
SUBDIRECTORY = Shape("subdirectory", "tree", "")
SINGLE_FILE = Shape("file", "tree/file", None)
SHAPES = (DIRECTORY, SUBDIRECTORY, SINGLE_FILE)

CONTENT = "0123456789 on the mount\n"


def populate_tree(source: Path) -> None:
    """The tree that every scenario finds on its source."""
    tree = source / "tree"
    tree.mkdir()
    (tree / "file").write_text(CONTENT)
    (tree / "other").write_text("other\n")
    (tree / "dir").mkdir()
    (tree / "dir" / "inner").write_text("inner\n")
    (tree / "link").symlink_to("file")
    os.mkfifo(tree / "fifo")
    with suppress(PermissionError):  # a user namespace makes no devices
        os.mknod(tree / "null", 0o20666, os.makedev(1, 3))
        os.mknod(tree / "zero", 0o20666, os.makedev(1, 5))


def mount_tmpfs(source: Path) -> None:
    """A filesystem of the test's own, so that nothing else shows its superblock."""
    kernel.mount("source", source, "tmpfs")


@dataclass(frozen=True)
class Bind:
    """One bind mount of the process, unmounted lazily by its program."""

    shape: Shape = DIRECTORY
    flags: int = 0
    userns: int | None = None  # an id-mapped mount: the user namespace with the map
    recursive: bool = False  # with what is mounted below

    def attach(self, source: Path, point: Path, tree: int = -1) -> None:
        """Make the mount, from a clone of it if there is one."""
        if self.shape.is_file:
            point.touch()
        else:
            point.mkdir()
        if self.userns is None:
            kernel.bind(source / self.shape.bound, point, self.flags, recursive=self.recursive)
            return
        if tree < 0:
            tree = self.clone(source)
        kernel.move_mount(tree, point)
        os.close(tree)

    def clone(self, source: Path) -> int:
        """The mount before it is attached, with its id-map."""
        assert self.userns is not None
        tree = kernel.open_tree(-100, str(source / self.shape.bound), kernel.OPEN_TREE_CLONE)
        kernel.mount_setattr_idmap(tree, self.userns)
        return tree


def shift_owners(directory: Path) -> None:
    """Give all files to the user namespace: its root instead of root, and so on."""
    for path in (directory, *directory.rglob("*")):
        facts = path.lstat()
        mode = facts.st_mode
        os.lchown(path, USERNS_ROOT + facts.st_uid, USERNS_ROOT + facts.st_gid)
        if not path.is_symlink():
            path.chmod(mode & 0o7777)  # chown takes the setuid bit away


@contextmanager
def user_namespace(lines: str) -> Iterator[int]:
    """An fd of a user namespace with these maps of users and groups, for id-mapped mounts."""
    held, release = os.pipe()
    pid = kernel.clone(kernel.CLONE_NEWUSER)
    if not pid:
        os.close(release)
        os.read(held, 1)  # until the maps are written and the namespace is held by its fd
        os._exit(0)
    for name in ("uid_map", "gid_map"):
        Path(f"/proc/{pid}/{name}").write_text(lines)
    fd = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY)
    os.close(release)
    os.waitpid(pid, 0)
    os.close(held)
    try:
        yield fd
    finally:
        os.close(fd)


def enter_user_namespace() -> int:
    """Clone this process into user, PID and mount namespaces of its own, as a sibling.

    Returns:
        0 in the new process, its pid in this one.
    """
    ready_read, ready_write = os.pipe()
    flags = kernel.CLONE_NEWUSER | kernel.CLONE_NEWPID | kernel.CLONE_NEWNS | kernel.CLONE_PARENT
    pid = kernel.clone(flags)
    if pid:
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{pid}/{name}").write_text(USERNS_MAP)
        os.close(ready_write)
        return pid
    os.close(ready_write)
    os.read(ready_read, 1)  # the maps are written
    os.close(ready_read)
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    return 0


@dataclass
class Ground:
    """The directories of one scenario on the host, and its mounts."""

    work: Path
    placement: Placement
    binds: Sequence[Bind]
    attached: bool
    mount_source: Callable[[Path], None] = mount_tmpfs
    populate: Callable[[Path], None] = populate_tree
    userns: bool = False  # the process is the init of user and PID namespaces of its own
    shifts_owners: bool = True  # the source's files are the user namespace's
    outer_root: Path = Path("/")  # what a namespace has as its root, as the runner sees it
    _mounted: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        for directory in (self.base, self.source, self.root):
            directory.mkdir()
        if self.userns:
            assert self.placement.own_namespace, "a user namespace has mounts of its own"
            self.work.chmod(0o755)
            os.chown(self.base, USERNS_ROOT, USERNS_ROOT)

    @property
    def base(self) -> Path:
        """Holds the mount points and the result file, on a mount that stays attached."""
        return self.work / "base"

    @property
    def source(self) -> Path:
        """The source as the runner sees it."""
        return self.work / "source"

    @property
    def root(self) -> Path:
        """Where the root of a namespace is put together."""
        return self.work / "root"

    @property
    def dev(self) -> Path:
        """The device nodes that a namespace gets."""
        return self.work / "dev" if self.userns else Path("/dev")

    @property
    def seen_base(self) -> Path:
        """The base directory as the process sees it."""
        return INSIDE if self.placement.own_namespace else self.base

    def points(self) -> list[str]:
        """The mount points as the process sees them."""
        return [str(self.seen_base / f"point{i}") for i in range(len(self.binds))]

    def make_source(self) -> None:
        """Mount and fill the source where the runner sees it."""
        if self.userns:
            # As engines do: of /dev the namespace's root may have no permission.
            self.dev.mkdir()
            kernel.mount("dev", self.dev, "tmpfs", kernel.MS_NOSUID, "mode=755")
            for name, number in {"null": 3, "zero": 5, "random": 8, "urandom": 9}.items():
                os.mknod(self.dev / name, 0o20666, os.makedev(1, number))
                (self.dev / name).chmod(0o666)
            self._mounted.append(self.dev)
        if self.placement is Placement.NAMESPACE_TMPFS:
            return
        self.mount_source(self.source)
        self._mounted.append(self.source)
        self.populate(self.source)
        if self.userns and self.shifts_owners:
            shift_owners(self.source)

    def move_source(self, place: Path) -> None:
        """Have a copy of the source at another place, on a filesystem of its own."""
        place.mkdir()
        self.mount_source(place)
        self._mounted.append(place)
        subprocess.run(["cp", "--archive", f"{self.source}/.", str(place)], check=True)
        kernel.umount2(self.source, kernel.MNT_DETACH)

    def enter(self) -> int:
        """In the child that becomes the process: make its namespace and its binds.

        Returns:
            0; or the pid of another child of the runner, which becomes the process instead.
        """
        if not self.placement.own_namespace:
            self._attach_binds(self.source, self.base)
            return 0
        kernel.unshare(kernel.CLONE_NEWNS)
        kernel.make_private()
        self.mount_root()
        if self.userns:
            trees = [bind.clone(self.source) if bind.userns else -1 for bind in self.binds]
            pid = enter_user_namespace()
            if pid:
                return pid
            # As container engines do: what was there is locked, and what is made now is not.
            kernel.bind(self.root, self.root)
        else:
            trees = [-1 for _ in self.binds]
        kernel.mount("proc", self.root / "proc", "proc")
        kernel.bind(self.dev, self.root / "dev")
        inside = self.root / INSIDE.relative_to("/")
        kernel.bind(self.base, inside)
        self._attach_binds(self._enter_source(inside), inside, trees)
        kernel.pivot_into(self.root)
        return 0

    def _enter_source(self, inside: Path) -> Path:
        """Give the namespace its source, if it has one; returns what to bind from."""
        if self.placement is Placement.HOST_SOURCE:
            return self.source
        source = inside / "source"
        source.mkdir()
        if self.placement is Placement.NAMESPACE:
            recursive = any(bind.recursive for bind in self.binds)
            kernel.bind(self.source, source, recursive=recursive)
        else:
            self.mount_source(source)
            self.populate(source)
        return source

    def _attach_binds(self, source: Path, base: Path, trees: Sequence[int] = ()) -> None:
        for index, bind in enumerate(self.binds):
            bind.attach(source, base / f"point{index}", trees[index] if trees else -1)

    def mount_root(self) -> None:
        """The root filesystem of a namespace: by default a bind of the runner's own root, alone."""
        kernel.bind(self.outer_root, self.root)

    def externals(self) -> dict[str, tuple[Path, Path]]:
        """The mounts that CRIU must not dump: key, where it is inside, what it is outside."""
        if not self.placement.own_namespace:
            return {}
        found = {"dev": (Path("/dev"), self.dev), "base": (INSIDE, self.base)}
        if self.placement is Placement.NAMESPACE:
            found["source"] = (INSIDE / "source", self.source)
        if self.placement is Placement.HOST_SOURCE and self.attached:
            for index, bind in enumerate(self.binds):
                point = f"point{index}"
                found[point] = (INSIDE / point, self.source / bind.shape.bound)
        return found

    def dump_options(self) -> list[str]:
        """What criu dump must be told."""
        pairs = [f"mnt[{inside}]:{key}" for key, (inside, _) in self.externals().items()]
        return [part for pair in pairs for part in ("--external", pair)]

    def restore_options(self) -> list[str]:
        """What criu restore must be told; the root has to be mounted by then."""
        pairs = [f"mnt[{key}]:{outside}" for key, (_, outside) in self.externals().items()]
        options = [part for pair in pairs for part in ("--external", pair)]
        return ["--root", str(self.root), *options] if self.placement.own_namespace else options

    def clear(self) -> None:
        """Unmount what the runner sees."""
        points = [self.base / f"point{i}" for i in range(len(self.binds))]
        for path in [*points, *reversed(self._mounted)]:
            if os.path.ismount(path):
                kernel.umount2(path, kernel.MNT_DETACH)
        self._mounted.clear()
