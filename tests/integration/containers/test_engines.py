"""runc, crun and podman: containers whose processes hold files on detached mounts."""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ...conftest import THIS_CRIU, in_vm
from ..conftest import MakeContainer
from ..criu.test_modes import assert_lives, require_dirty_tracking
from ..criu.test_modes import hold_life as hold_memory
from ..harness import kernel
from ..harness.agent import Check, Task
from ..harness.container import Container
from ..harness.criu import default_plugins
from ..harness.engines import Podman, has_settings, plugin_settings, write_settings
from ..harness.placement import CONTENT, Bind, Placement
from ..harness.programs import hold_file

pytestmark = pytest.mark.detached


BESIDE = pytest.mark.native_only("podman takes half a minute there, and another engine does it too")


def hold_life(task: Task) -> Check:
    """On one mount files, a directory, the working directory, a mapping; another is read-only."""
    file = os.open(task.path("file"), os.O_RDWR | os.O_APPEND)
    os.read(file, 10)
    top = os.open(task.path(), os.O_RDONLY | os.O_DIRECTORY)
    os.chdir(task.path("dir"))
    fifo = os.open(task.path("fifo"), os.O_RDWR | os.O_NONBLOCK)
    os.write(fifo, b"waiting")
    other = os.open(task.path("other"), os.O_RDWR)
    shared = mmap.mmap(other, 6)
    deleted = os.open(task.path("deleted"), os.O_RDWR | os.O_CREAT)
    os.write(deleted, b"no name")
    os.unlink(task.path("deleted"))
    fixed = os.open(task.path("file", 1), os.O_RDONLY)
    ask_child = task.fork(lambda: lambda: os.pread(file, 10, 0).decode())
    task.detach()

    def check() -> dict[str, Any]:
        waiting = os.read(fifo, 100)
        os.write(fifo, waiting)
        shared[:1] = b"S"
        return {
            "position": os.lseek(file, 0, os.SEEK_CUR),
            "here": os.listdir("."),
            "top": sorted(os.listdir(top)),
            "fifo": waiting.decode(),
            "shared": os.pread(other, 6, 0).decode(),
            "deleted": [os.fstat(deleted).st_nlink, os.pread(deleted, 10, 0).decode()],
            "fixed": os.pread(fixed, 100, 0).decode(),
            "read-only": bool(os.fstatvfs(fixed).f_flag & os.ST_RDONLY),
            "child": ask_child(),
        }

    return check


@pytest.mark.parametrize(
    ("engine", "placement"),
    [
        ("runc", Placement.NAMESPACE),
        ("crun", Placement.HOST_SOURCE),
        ("podman-runc", Placement.HOST_SOURCE),
        ("runc", Placement.HOST_SOURCE),
        ("crun", Placement.NAMESPACE),
        ("podman-crun", Placement.NAMESPACE),
    ],
)
def test_cycle(container: MakeContainer, engine: str, placement: Placement) -> None:
    """Volumes are unmounted lazily inside; the source is another one, or on the host alone."""
    held = container(engine, placement, [Bind(), Bind(flags=kernel.MS_RDONLY)]).start(hold_life)
    answer = held.ask()
    assert answer["read-only"] and answer["fixed"] == CONTENT
    if not in_vm():
        held.checkpoint(plugin=False).failed("Can't lookup mount")
        held.checkpoint("--leave-running").succeeded()
        assert held.ask() == answer
    held.cycle()
    assert held.ask() == answer


def hold_in_namespaces(task: Task, tcp: bool = True) -> Check:
    """Children in mount namespaces of their own: one opened its file there, one had it before.

    The first process holds a lock and both ends of a connection.
    """
    before = os.open(task.path("file"), os.O_RDONLY)

    def opened_there() -> Check:
        os.close(before)
        unshare_mounts()
        inside = os.open(task.path("other"), os.O_RDONLY)
        task.detach()
        return lambda: os.pread(inside, 100, 0).decode()

    def opened_before() -> Check:
        unshare_mounts()
        return lambda: os.pread(before, 100, 0).decode()

    children = [task.fork(opened_there), task.fork(opened_before)]
    os.close(before)
    task.detach()
    lock = os.open(task.base + "/locked", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    if tcp:
        server = socket.create_server(("127.0.0.1", 0))
        client = socket.create_connection(server.getsockname())
        accepted, _ = server.accept()
    else:
        client, accepted = socket.socketpair()
    client.sendall(b"sent before")

    def check() -> list[Any]:
        said = accepted.recv(100)
        client.sendall(said)
        return [*(ask() for ask in children), said.decode()]

    return check


def unshare_mounts() -> None:
    """A mount namespace of one's own; os.unshare needs Python 3.12, a library leaves files open."""
    if sys.version_info >= (3, 12):
        os.unshare(os.CLONE_NEWNS)


ALL_OPTIONS = ("--tcp-established", "--file-locks")


@pytest.mark.parametrize("engine", ["podman-runc", pytest.param("podman-crun", marks=BESIDE)])
def test_another_machine(container: MakeContainer, engine: str) -> None:
    """Exported; podman's storage is gone; imported under another name, volumes elsewhere."""
    binds = [Bind(), Bind(flags=kernel.MS_RDONLY)]
    held = container(engine, Placement.HOST_SOURCE, binds, read_only=True)
    held.images = held.work / "archive.tar"
    held.start(hold_life)
    answer = held.ask()
    held.checkpoint("--file-locks").succeeded()
    podman = held.engine
    assert isinstance(podman, Podman)
    podman.renew()
    moved = held.work / "moved"
    held.ground.move_source(moved)
    held.restore("--file-locks", name=f"{held.name}-2").failed("criu-detached: ")
    podman.remove(held.name)  # podman keeps what it could not start
    with plugin_settings(f"map {held.work}/source {moved}"):
        held.restore("--file-locks", name=f"{held.name}-3").succeeded()
    assert held.ask() == answer


@pytest.mark.parametrize("engine", ["runc", "crun", "podman-crun"])
def test_namespaces(container: MakeContainer, engine: str) -> None:
    """Without podman, nothing brings the loopback interface up before CRIU restores connections."""
    tcp = engine.startswith("podman")
    held = container(engine, read_only=True).start(hold_in_namespaces, tcp=tcp)
    answer = held.ask()
    held.cycle(*ALL_OPTIONS)
    assert held.ask() == answer


def test_pre_dump(container: MakeContainer) -> None:
    """Memory is saved before, while the container runs."""
    require_dirty_tracking()
    held = container("runc", Placement.HOST_SOURCE, [Bind(), Bind()]).start(hold_life)
    answer = held.ask()
    last, held.images = held.images, held.work / "before"
    held.checkpoint("--pre-dump").succeeded()
    assert held.ask() == answer
    before, held.images = held.images, last
    held.checkpoint("--parent-path", f"../{before.name}").succeeded()
    assert os.path.samefile(held.images / "parent", before)
    held.restore().succeeded()
    assert held.ask() == answer


@pytest.mark.parametrize(("engine", "exported"), [("podman-runc", True), ("podman-crun", False)])
def test_pre_checkpoint(container: MakeContainer, engine: str, exported: bool) -> None:
    """The same by podman, with two archives or in its storage; memory changes in between."""
    require_dirty_tracking()
    held = container(engine, Placement.HOST_SOURCE).start(hold_memory)
    before = held.work / "before.tar"
    last = held.images = held.images.with_suffix(".tar") if exported else held.images
    assert_lives(held, 1)
    held.images = before if exported else last
    held.checkpoint("--pre-checkpoint").succeeded()
    assert_lives(held, 2)
    held.images = last
    held.checkpoint("--with-previous").succeeded()
    if exported:
        held.engine.remove(held.name)
        held.restore("--import-previous", str(before), name=f"{held.name}-2").succeeded()
    else:
        held.restore().succeeded()
    assert_lives(held, 3)


@pytest.mark.parametrize("engine", ["podman-crun", pytest.param("podman-runc", marks=BESIDE)])
def test_podman_init(container: MakeContainer, engine: str) -> None:
    """By its true path: CRIU cannot bind again what is a symlink, as Debian's default init is."""
    held = container(engine, options=["--init", "--init-path=/usr/bin/catatonit"])
    held.start(hold_file).cycle()
    assert held.ask() == CONTENT


@pytest.mark.native_only("CRIU refuses it by the image alone")
def test_podman_init_refused_by_criu(container: MakeContainer) -> None:
    """The default init is a symlink; attached, too."""
    for attached in (True, False):
        held = container("podman-runc", attached=attached, options=["--init"]).start(hold_file)
        held.checkpoint().succeeded()
        held.restore().failed("Can't remount .* with MS_PRIVATE")


@pytest.fixture
def in_settings() -> Iterator[None]:
    """The plugin is where the runtimes' settings say, not where CRIU looks by itself.

    In a user namespace crun binds device nodes of the host; CRIU has to look for such mounts.
    """
    for runtime, lines in {"runc": [], "crun": ["external mnt[]"]}.items():
        write_settings(runtime, f"libdir {default_plugins()}", *lines)
    yield
    for runtime in ("runc", "crun"):
        write_settings(runtime)


@pytest.mark.parametrize(
    "engine",
    [
        *("runc", "crun"),
        pytest.param("podman-runc", marks=BESIDE),
        pytest.param("podman-crun", marks=BESIDE),
    ],
)
@pytest.mark.usefixtures("engines", "in_settings")
def test_libdir(container: MakeContainer, engine: str) -> None:
    if not has_settings(engine):
        pytest.skip(f"{THIS_CRIU}has no settings from crun")
    held = container(engine, Placement.HOST_SOURCE).start(hold_file)
    held.cycle(plugin=False)
    assert held.ask() == CONTENT


def let_through(held: Container) -> None:
    """The root of a user namespace restores it, and has to get to what is mounted in it."""
    ways = []
    if held.engine.name.endswith("crun"):
        ways.append(Path("/run/crun"))  # an empty directory is there, that it hides others with
    if isinstance(held.engine, Podman):
        images = held.engine.images_of(held.name)
        ways += [images, Path("/run/containers/storage").joinpath(*images.parts[-4:-1])]
    for directory in {directory for way in ways for directory in (way, *way.parents)}:
        mode = directory.stat().st_mode
        if mode & 0o111 != 0o111:
            directory.chmod(mode | 0o111)


@pytest.mark.parametrize("engine", ["runc", "crun", "podman-runc", "podman-crun"])
@pytest.mark.usefixtures("engines", "in_settings")
def test_user_namespace(container: MakeContainer, engine: str) -> None:
    """Its root may mount no cgroup filesystem again, but the host's can be a volume."""
    if not has_settings(engine):
        pytest.skip(f"{THIS_CRIU}has no settings from crun")
    groups = "--volume=/sys/fs/cgroup:/sys/fs/cgroup:ro"
    held = container(engine, userns=True, options=[groups]).start(hold_file)
    before = held.seen()
    held.checkpoint(plugin=False).succeeded()
    let_through(held)
    held.restore(plugin=False).succeeded()
    assert held.seen() == before
    assert held.ask() == CONTENT


def test_pod(container: MakeContainer) -> None:
    """Two containers with the namespaces of a pod; one of them is moved into a new pod."""
    podman = container("podman-crun").engine
    assert isinstance(podman, Podman)
    for pod in ("one", "two"):
        podman.call("pod", "create", "--name", pod, "--network=none", "--share=ipc,uts,net")
    try:
        held = container("podman-crun", options=["--pod=one"]).start(hold_file)
        held.images = held.work / "archive.tar"
        held.checkpoint().succeeded()
        held.restore("--pod=two", name=f"{held.name}-2").succeeded()
        assert held.ask() == CONTENT
    finally:
        for pod in ("one", "two"):
            podman.call("pod", "rm", "--force", "--time=0", pod)
