"""A container whose root is full of traps: nothing of it is loaded, by CRIU or in its tasks."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..conftest import MakeContainer, MakeScenario
from ..harness import kernel
from ..harness.agent import Check, Task
from ..harness.criu import default_plugins
from ..harness.engines import Oci, make_root
from ..harness.opened import Opened
from ..harness.placement import Placement

pytestmark = pytest.mark.detached

NATIVELY = pytest.mark.native_only("podman takes a minute there, and runc does it too")
PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
TRAP = "raise SystemExit('a module of the container was imported')\n"
# Where Python, the loader, libc and CRIU look for what they load, beneath a root.
PLACES = [
    *["usr/lib", "usr/lib64", "usr/local/lib", "lib64", "usr/bin", "usr/sbin", "usr/local/bin"],
    *["etc", "etc/ld.so.conf.d", "etc/criu", "usr/lib/criu", "usr/lib/locale", "root"],
    *["usr/lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/gconv", "usr/share/locale"],
    *["usr/lib/x86_64-linux-gnu/glibc-hwcaps/x86-64-v2", "usr/lib/locale/C.utf8"],
]
TREES = [f"usr/lib/{PYTHON}", f"usr/local/lib/{PYTHON}", "usr/lib/python3/dist-packages"]
# Traps that are no Python; a file that the process has mapped stays as it is.
FILES = {
    "etc/ld.so.preload": "/usr/lib/libtrap.so\n",
    "etc/ld.so.cache": "no cache\n",
    "etc/nsswitch.conf": "passwd: trap\ngroup: trap\nhosts: trap\n",
    "etc/criu/criu-detached.conf": "source 1 /etc\n",
    "etc/criu/default.conf": "libdir /usr/lib/criu\n",
    "etc/locale.alias": "C xx_XX.trap\n",
    "usr/lib/libtrap.so": "no library\n",
    "usr/lib/criu/trap.so": "no plugin\n",
    "usr/lib/locale/locale-archive": "no archive\n",
    "usr/lib/locale/C.utf8/LC_CTYPE": "no locale\n",
    "usr/lib/x86_64-linux-gnu/libc.so.6": "no libc\n",
    "usr/lib/x86_64-linux-gnu/libnss_trap.so.2": "no module of nsswitch\n",
    f"usr/lib/x86_64-linux-gnu/lib{PYTHON}.so.1.0": "no Python\n",
    "usr/lib/x86_64-linux-gnu/libblkid.so.1": "no libblkid\n",
    "usr/lib/x86_64-linux-gnu/glibc-hwcaps/x86-64-v2/libc.so.6": "no libc\n",
    "usr/lib/x86_64-linux-gnu/gconv/gconv-modules": "module INTERNAL TRAP// trap 1\n",
    "usr/lib/x86_64-linux-gnu/gconv/gconv-modules.cache": "no cache\n",
}


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A copy of the machine's root that a container may write to, on a filesystem of its own."""
    layers, merged = tmp_path / "layers", tmp_path / "merged"
    for directory in (layers, merged):
        directory.mkdir()
    kernel.mount("layers", layers, "tmpfs")
    for name in ("upper", "work"):
        (layers / name).mkdir()
    options = f"lowerdir=/,upperdir={layers}/upper,workdir={layers}/work"
    kernel.mount("overlay", merged, "overlay", 0, options)
    yield merged
    kernel.umount2(merged, kernel.MNT_DETACH)
    kernel.umount2(layers, kernel.MNT_DETACH)


def mapped_files(pid: int) -> set[str]:
    """What a process has mapped, by its own paths."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {line.split(None, 5)[5] for line in lines if len(line.split(None, 5)) > 5}


def traps(root: Path) -> Iterator[tuple[Path, str]]:
    """Every trap: its place, and what is in it."""
    for name, content in FILES.items():
        yield root / name, content
    packages = root / "usr/lib/python3/dist-packages"
    plugins = root / default_plugins().relative_to("/")
    for directory in (packages, root / "root", plugins, plugins / "criu_detached", root):
        for name in ("criu_detached", "encodings"):
            yield directory / name / "__init__.py", TRAP
        for name in ("sitecustomize", "usercustomize", "os", "stat", "errno", "fcntl", "struct"):
            yield directory / f"{name}.py", TRAP
    for module in (root / f"usr/lib/{PYTHON}").rglob("*.py"):
        yield module, TRAP
    yield plugins / "criu_detached/embed.so", "no library\n"
    yield plugins / "criu_detached.so", "no plugin\n"


def set_traps(root: Path, mapped: set[str]) -> set[Path]:
    """Put them where the process has nothing mapped."""
    kept = {root / path.lstrip("/") for path in mapped}
    placed = set()
    for path, content in traps(root):
        if path in kept:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            path.unlink()
        path.write_text(content)
        path.chmod(0o755)
        placed.add(path)
    return placed


def set_traps_in(root: Path) -> list[tuple[Path, str]]:
    """Set those traps that lie outside of /usr."""
    usr = root / "usr"
    placed = [(path, text) for path, text in traps(root) if usr not in path.parents]
    for path, text in placed:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return placed


def watched(root: Path, placed: set[Path]) -> Iterator[Path]:
    """All directories with something that might be loaded."""
    found = {path.parent for path in placed}
    for place in PLACES:
        if (root / place).is_dir():
            found.add(root / place)
    for tree in TREES:
        found.update(path for path in (root / tree).rglob("*") if path.is_dir())
    # The same directory by two paths (lib is a symlink) would be one watch.
    yield from {directory.resolve(): directory for directory in sorted(found)}.values()


def hold_all(task: Task) -> Check:
    """What the plugin itself works on in a task: all that is not plain."""
    file = os.open(task.path("file"), os.O_RDWR)
    os.chdir(task.path("dir"))
    symlink = os.open(task.path("link"), os.O_PATH | os.O_NOFOLLOW)
    null = os.open(task.path("null"), os.O_RDWR)
    deleted = os.open("deleted", os.O_RDWR | os.O_CREAT)
    os.setxattr(deleted, "trusted.color", b"\xff")
    os.write(deleted, b"deleted")
    os.chown(deleted, 1234, 5678)
    os.unlink("deleted")
    linked = os.open("linked", os.O_RDWR | os.O_CREAT)
    os.link("linked", "left")
    os.unlink("linked")
    server = socket.socket(socket.AF_UNIX)
    server.bind(task.path("dir/socket"))
    server.listen()
    task.detach()

    def check() -> Any:
        client = socket.socket(socket.AF_UNIX)
        client.connect("socket")
        client.close()
        server.accept()[0].close()
        return [
            os.pread(file, 10, 0).decode(),
            os.readlink("", dir_fd=symlink),
            os.write(null, b"x"),
            [os.pread(deleted, 10, 0).decode(), os.fstat(deleted).st_uid],
            os.fstat(linked).st_nlink,
            sorted(os.listdir(".")),
        ]

    return check


def trapped(root: Path, mapped: set[str]) -> Opened:
    """Set the traps for a process that has started, and see that they would spring."""
    placed = set_traps(root, mapped)
    opened = Opened(watched(root, placed))
    command = ["chroot", str(root), "/bin/true"]
    subprocess.run(command, check=False, stderr=subprocess.DEVNULL)
    assert opened.take() & placed, "the traps do not work"
    return opened


def loaded(opened: Opened, root: Path) -> list[str]:
    """What was opened, by its path in the container."""
    return sorted({"/" + str(path.relative_to(root)) for path in opened.take()})


@pytest.mark.parametrize("placement", [Placement.NAMESPACE, Placement.HOST_SOURCE])
def test_nothing_is_loaded(
    scenario: MakeScenario, root: Path, placement: Placement, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = scenario(placement)
    held.ground.outer_root = root
    monkeypatch.setenv("LC_ALL", "C")  # so that the process itself has no locale mapped
    held.start(hold_all)
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    expected = held.ask()
    mapped = mapped_files(held.pid)
    assert not any("locale" in path or "gconv" in path for path in mapped)
    # CRIU opens what is mapped; that it is seen shows that anything else would be.
    own = sorted(path for path in mapped if path.startswith("/usr/"))
    opened = trapped(root, mapped)
    try:
        held.dump().succeeded()
        assert loaded(opened, root) == own
        # An error in a task has a text, which libc could look for in a catalogue.
        file = held.ground.source / "tree" / "file"
        kept = file.rename(file.with_name("kept"))
        os.mkfifo(file)
        held.restore().failed("criu-detached: .*file.* is a FIFO")
        held.assert_gone()
        assert loaded(opened, root) == []
        kept.rename(file)
        held.restore().succeeded()
        assert loaded(opened, root) == own
        assert held.ask() == expected
    finally:
        opened.close()


@pytest.mark.parametrize("engine", ["runc", pytest.param("podman-crun", marks=NATIVELY)])
def test_engine(container: MakeContainer, root: Path, tmp_path: Path, engine: str) -> None:
    """The same in a container: its root, or volumes over it, and one that has its programs."""
    inside = tmp_path / "inside"
    volumes = [f"--volume={inside}/{name}:/{name}" for name in ("etc", "root", "src")]
    held = container(engine, Placement.NAMESPACE, options=volumes)
    held.usr = root / "usr"
    if isinstance(held.engine, Oci):  # which has no such option
        inside = held.engine.bundle(held.name) / "rootfs"
        make_root(inside)
    etc = {path for path, _ in set_traps_in(inside)}
    held.start(hold_all)
    expected = held.ask()
    mapped = mapped_files(held.pid)
    others = Opened({path.parent for path in etc})
    opened = trapped(root, mapped)
    try:
        for _ in range(2):
            held.checkpoint().succeeded()
            held.restore().succeeded()
            own = {path for path in mapped if path.startswith("/usr/")}
            assert set(loaded(opened, root)) == own
            assert others.take() & etc == set()
            assert held.ask() == expected
    finally:
        opened.close()
        others.close()
