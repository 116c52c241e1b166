"""Overlays that are mounted nowhere any more: their layers are laid on each other again."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ..conftest import MakeScenario
from ..harness import kernel
from ..harness.agent import Check, Task
from ..harness.kernel import MNT_DETACH, has_statmount_by_fd, umount2
from ..harness.placement import Placement
from ..harness.scenario import Scenario

pytestmark = pytest.mark.detached

WHERE = pytest.mark.parametrize(
    "where", [Placement.HOST, Placement.HOST_SOURCE], ids=lambda p: p.value
)


@dataclass
class Layers:
    """The directories of an overlay, with names that options have to escape."""

    top: Path
    lower: Sequence[str] = ("lower", "lo:wer,2 b", "lo\\wer")
    upper: str = "up,per:\\1"
    options: Sequence[str] = ()
    own_filesystems: bool = False
    mounted: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in [*self.lower, *self.written]:
            (self.top / name).mkdir(parents=True)
            if self.own_filesystems and name != "work":
                self.mount(self.top / name)
        for name in self.lower:
            tree = self.top / name / "tree"
            tree.mkdir()
            (tree / f"of {name}").write_text(f"{name}\n")
            (tree / "file").write_text(f"file of {name}\n")
            (tree / "copied").write_text(f"to be copied from {name}\n")
        if self.own_filesystems:
            for name in self.written:
                (self.top / self.upper / name).mkdir(exist_ok=True)

    def mount(self, point: Path) -> None:
        """Give a layer a filesystem of its own, with other inode numbers than the rest."""
        kernel.mount("layer", point, "tmpfs")
        self.mounted.append(point)
        for _ in range(100 * len(self.mounted)):
            (point / "unused").touch()
            (point / "unused").unlink()

    @property
    def written(self) -> list[str]:
        """The upper and the work directory."""
        return [self.upper, "work"] if self.upper else []

    @property
    def upper_directory(self) -> Path:
        """Where it is."""
        return self._of_upper(self.upper)

    def _of_upper(self, name: str) -> Path:
        return self.top / self.upper / name if self.own_filesystems else self.top / name

    def mount_overlay(self, source: Path) -> None:
        """As mount(8) does, with a backslash before what would end a path or an option."""
        lower = ":".join(escape(self.top / name) for name in self.lower)
        options = [f"lowerdir={lower}", *self.options]
        if self.upper:
            options.append(f"upperdir={escape(self.upper_directory)}")
            options.append(f"workdir={escape(self._of_upper('work'))}")
        try:
            kernel.mount("overlay", source, "overlay", 0, ",".join(options))
        except OSError as error:
            pytest.skip(f"this kernel mounts no such overlay: {error}")


def escape(path: Path) -> str:
    r"""A path in the options of an overlay."""
    return "".join("\\" + char if char in "\\,:" else char for char in str(path))


@pytest.fixture
def layers(tmp_path: Path) -> Iterator[Callable[..., Layers]]:
    """Makes layers; filesystems of their own end with the test."""
    made: list[Layers] = []

    def make(**arguments: Any) -> Layers:
        made.append(Layers(tmp_path / f"layers{len(made)}", **arguments))
        return made[-1]

    yield make
    for one in made:
        for point in one.mounted:
            umount2(point, MNT_DETACH)


def start(
    scenario: MakeScenario,
    layers: Layers,
    program: Any,
    where: Placement = Placement.HOST,
    **arguments: Any,
) -> Scenario:
    """A process that holds files of the overlay alone."""
    held = scenario(where, mount_source=layers.mount_overlay, populate=lambda _: None)
    held.start(program, **arguments)
    umount2(held.ground.source, MNT_DETACH)
    return held


def hold_files(task: Task, writes: bool) -> Check:
    """Files of the layers, one that was copied up, one that is deleted, a working directory."""
    os.chdir(task.path())
    files = [os.open(name, os.O_RDONLY) for name in sorted(os.listdir())]
    if writes:
        files.append(os.open("copied", os.O_RDWR | os.O_APPEND))
        os.write(files[-1], b"copied\n")
        files.append(os.open("new", os.O_RDWR | os.O_CREAT))
        os.write(files[-1], b"new\n")
        os.mkdir("directory")
        os.rename("new", "directory/new")
        files.append(os.open("deleted", os.O_RDWR | os.O_CREAT))
        os.write(files[-1], b"deleted\n")
        os.unlink("deleted")
    task.detach()

    def check() -> list[Any]:
        if writes:
            with open("directory/log", "a") as log:
                log.write("line\n")
        found = {}
        for name in filter(os.path.isfile, os.listdir()):
            with open(name) as file:
                found[name] = file.read()
        return [found, [os.pread(file, 100, 0).decode() for file in files]]

    return check


def hold_file(task: Task, name: str) -> Check:
    """One file."""
    file = os.open(task.path(name), os.O_RDONLY)
    task.detach()
    return lambda: os.pread(file, 100, 0).decode()


def cycle_twice(held: Scenario) -> None:
    """Restored twice, or refused before Linux 7.0."""
    expected = held.ask()
    if not has_statmount_by_fd():
        refused(held, r"does not tell of which layers this overlay is; Linux 7\.0 or newer does")
        return
    for _ in range(2):
        held.cycle()
        assert held.ask() == expected


def refused(held: Scenario, reason: str) -> None:
    """The dump says why, and the process goes on."""
    expected = held.ask()
    if not has_statmount_by_fd():
        reason = "does not tell of which layers this overlay is"
    held.dump().failed(reason)
    assert held.ask() == expected


@pytest.mark.covers("file", "o_append", "cwd", "deleted_file", column="sole-held")
@WHERE
@pytest.mark.parametrize("own_filesystems", [False, True], ids=["one", "several"])
def test_layers(
    scenario: MakeScenario, layers: Callable[..., Layers], where: Placement, own_filesystems: bool
) -> None:
    """Three lower ones and an upper one, on one filesystem or on several."""
    made = layers(own_filesystems=own_filesystems)
    held = start(scenario, made, hold_files, where, writes=True)
    cycle_twice(held)
    held.kill()
    log = made.upper_directory / "tree" / "directory" / "log"
    assert set(log.read_text().splitlines()) == {"line"}


@pytest.mark.parametrize(
    "options",
    [
        ["redirect_dir=on", "metacopy=on"],
        ["index=on", "nfs_export=on"],
        ["xino=on"],
        ["userxattr"],
        ["uuid=off"],
    ],
    ids=",".join,
)
def test_options(scenario: MakeScenario, layers: Callable[..., Layers], options: list[str]) -> None:
    """They are the same in the new overlay."""
    held = start(scenario, layers(options=options), hold_files, writes=True)
    cycle_twice(held)


def test_read_only(scenario: MakeScenario, layers: Callable[..., Layers]) -> None:
    """Lower layers alone."""
    cycle_twice(start(scenario, layers(upper=""), hold_files, writes=False))


def test_volatile(scenario: MakeScenario, layers: Callable[..., Layers]) -> None:
    """The kernel takes its upper directory for broken afterwards."""
    held = start(scenario, layers(options=["volatile"]), hold_file, name="file")
    refused(held, "the overlay is volatile")


def remove(layers: Layers) -> None:
    """The name of the upper directory."""
    layers.upper_directory.rename(layers.top / "moved")


def replace_upper(layers: Layers) -> None:
    """A copy of the upper directory in its place."""
    remove(layers)
    shutil.copytree(layers.top / "moved", layers.upper_directory)


def replace_lower(layers: Layers) -> None:
    """A copy of a lower directory in its place."""
    lower = layers.top / layers.lower[0]
    lower.rename(layers.top / "moved")
    shutil.copytree(layers.top / "moved", lower)


@pytest.mark.covers("file", column="sole-held", outcome="refused")
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (remove, "cannot be opened where criu runs: No such file"),
        (replace_upper, "is another directory where criu runs"),
        (replace_lower, "of the overlay is not, or not surely, what its layers show"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_layer_is_gone(
    scenario: MakeScenario,
    layers: Callable[..., Layers],
    change: Callable[[Layers], None],
    reason: str,
) -> None:
    """What is at a layer's path when it is dumped is not what the overlay shows."""
    made = layers()
    held = start(scenario, made, hold_file, name="file")
    change(made)
    refused(held, reason)


def test_layer_is_another_one_at_restore(
    scenario: MakeScenario, layers: Callable[..., Layers]
) -> None:
    if not has_statmount_by_fd():
        pytest.skip("this kernel (before 7.0) does not tell the options of an overlay")
    made = layers()
    held = start(scenario, made, hold_file, name="file")
    held.dump().succeeded()
    replace_lower(made)
    held.restore().failed("of an overlay. is another directory than at the dump")


def test_overlay_is_in_use(scenario: MakeScenario, layers: Callable[..., Layers]) -> None:
    """A task that was left running still writes to the upper directory."""
    if not has_statmount_by_fd():
        pytest.skip("this kernel (before 7.0) does not tell the options of an overlay")
    held = start(scenario, layers(), hold_file, name="file")
    held.dump("--leave-running").succeeded()
    run = held.restore()
    run.failed("is in use by one that is still mounted or held: end the dumped processes")
    assert held.ask() == "file of lower\n"


def test_other_holder(scenario: MakeScenario, layers: Callable[..., Layers]) -> None:
    """Somebody outside of the dump has a file of the overlay."""
    held = scenario(mount_source=layers().mount_overlay, populate=lambda _: None)
    held.start(hold_file, name="file")
    with open(held.ground.source / "tree" / "copied"):
        umount2(held.ground.source, MNT_DETACH)
        held.dump().failed(f"process {os.getpid()} holds that too")
        assert held.ask() == "file of lower\n"


def hold_socket(task: Task) -> Check:
    """A datagram socket whose file is in the upper directory, and one that is connected to it."""
    pair = [socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2)]
    pair[0].bind(task.path("socket"))
    pair[1].connect(task.path("socket"))
    top = os.open(task.path(), os.O_RDONLY)
    task.detach()

    def check() -> list[Any]:
        pair[1].send(b"by peer")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.sendto(b"by name", f"/proc/self/fd/{top}/socket")
        return [pair[0].getsockname(), pair[0].recv(9).decode(), pair[0].recv(9).decode()]

    return check


@pytest.mark.covers("unix_socket", column="sole-held")
@WHERE
def test_socket(scenario: MakeScenario, layers: Callable[..., Layers], where: Placement) -> None:
    cycle_twice(start(scenario, layers(), hold_socket, where))
