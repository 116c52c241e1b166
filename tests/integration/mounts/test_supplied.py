"""Mounts that the user supplies: whatever the images say, their files are where a setting says."""

from __future__ import annotations

import mmap
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ..anonymous.test_anonymous import NEEDS_CLONES, hold_branches, with_deeper
from ..conftest import MakeScenario
from ..harness import kernel, look
from ..harness.agent import Check, Task
from ..harness.criu import default_plugins
from ..harness.placement import CONTENT, SHAPES, Bind, Placement, Shape
from ..harness.programs import hold_file, hold_position
from ..harness.scenario import Scenario
from ..settings import NAME, WAYS, Way, beside_images, settings
from ..sockets.test_bound_sockets import SOCKET_NAME, hold_datagrams

pytestmark = pytest.mark.detached


def mount_id(held: Scenario, fd: int) -> str:
    """The name that the settings have for a mount."""
    return str(look.open_files(held.pid)[fd].mnt_id)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Any:
    """A filesystem that has nothing to do with the source."""
    path = tmp_path / "else where"  # a name that settings must escape
    path.mkdir()
    kernel.mount("elsewhere", path, "tmpfs")
    yield path
    kernel.umount2(path, kernel.MNT_DETACH)


def written(path: Path) -> str:
    """A path as settings have it."""
    return str(path).replace(" ", r"\040")


def copy(held: Scenario, target: Path) -> Path:
    """Copy the source with all that its files have; returns the copy of the tree."""
    subprocess.run(["cp", "-a", f"{held.ground.source}/.", str(target)], check=True)
    return target / "tree"


def hold_much(task: Task) -> Check:
    """What a process may hold of a mount, and what it reads there; it leaves a trace each time."""
    os.chdir(task.path("dir"))
    fds = [os.open(task.path("file"), os.O_RDWR), os.open(task.path(), os.O_RDONLY)]
    mapping = mmap.mmap(fds[0], 10)
    deleted = os.open(task.path("dir/deleted"), os.O_RDWR | os.O_CREAT)
    os.write(deleted, b"deleted")
    os.unlink(task.path("dir/deleted"))
    task.detach()

    def check() -> list[Any]:
        with open("inner") as inner, open("trace", "a") as trace:
            trace.write("was here\n")
            names = sorted(os.listdir(fds[1]))
            return [inner.read(), mapping[:].decode(), os.pread(deleted, 9, 0).decode(), names]

    return check


MUCH = [
    "inner\n",
    "0123456789",
    "deleted",
    ["dir", "fifo", "file", "link", "null", "other", "zero"],
]
FILE = 3  # the first fd that a program opens


@pytest.mark.parametrize("placement", [Placement.HOST, Placement.HOST_SOURCE], ids=str)
def test_external(scenario: MakeScenario, placement: Placement, elsewhere: Path) -> None:
    """A filesystem that is mounted nowhere is dumped without its files, and comes from a copy."""
    held = scenario(placement, [Bind(SHAPES[1], kernel.MS_NOSUID)]).start(hold_much)
    tree = copy(held, elsewhere)
    kernel.umount2(held.ground.source, kernel.MNT_DETACH)
    name = mount_id(held, FILE)
    before, flags = look.seen(held.pid), look.mount_flags(held.pid, FILE)
    settings(held, f"external {name} # what the administrator says")
    run = held.dump().succeeded()
    assert re.search(f'to be supplied at restore: .*"source {name} PATH"', run.log)

    settings(held)
    held.restore().failed(f'criu-detached: .*mount {name} .tmpfs.* "source {name} PATH"')
    held.assert_gone()

    settings(held, f"source {name} {written(tree)}")
    run = held.restore().succeeded()
    assert any("on another filesystem" in line for line in run.warnings())
    assert look.seen(held.pid) == before
    assert look.mount_flags(held.pid, FILE) == flags
    assert held.ask() == MUCH
    assert (tree / "dir" / "trace").read_text() == "was here\n"

    settings(held)  # the copy is a bind source like any other
    assert held.cycle().ask() == MUCH
    assert (tree / "dir" / "trace").read_text() == "was here\n" * 2
    assert sorted(path.name for path in (tree / "dir").iterdir()) == ["inner", "trace"]


@WAYS
@pytest.mark.parametrize("which", ["one", "all"])
def test_advice(scenario: MakeScenario, way: Way, which: str, elsewhere: Path) -> None:
    """Where nothing else helps, the refusal says what to do, and that helps.

    The filesystem is mounted nowhere, and someone outside of the dump uses it.
    """
    held = scenario().start(hold_file)
    tree = copy(held, elsewhere)
    user = os.open(held.ground.source / "tree" / "other", os.O_RDONLY)
    kernel.umount2(held.ground.source, kernel.MNT_DETACH)
    name = mount_id(held, FILE)
    held.dump().failed(f'criu-detached: can\'t dump .*"external {name}"')
    assert held.ask() == CONTENT
    held.dump(*way(held, "external", name if which == "one" else "all")).succeeded()
    os.close(user)
    held.restore(*way(held, "source", name, written(tree.parent))).succeeded()
    assert held.ask() == CONTENT


def test_all_leaves_sources(scenario: MakeScenario, placement: Placement) -> None:
    """What has a bind source is not external because others are."""
    held = scenario(placement).start(hold_file)
    settings(held, "external all")
    assert held.cycle().ask() == CONTENT


@WAYS
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.name)
@pytest.mark.parametrize("placement", [*Placement], ids=str)
def test_source(
    scenario: MakeScenario, placement: Placement, shape: Shape, way: Way, elsewhere: Path
) -> None:
    """A source goes before the bind source that the images know, on the host or in a namespace."""
    held = scenario(placement, [Bind(shape, kernel.MS_NODEV)]).start(hold_position)
    held.ground.populate(elsewhere)
    name, flags = mount_id(held, FILE), look.mount_flags(held.pid, FILE)
    held.dump().succeeded()
    file = elsewhere / "tree" / "file"
    file.write_text(CONTENT.upper())
    held.restore(*way(held, "source", name, written(elsewhere / shape.bound))).succeeded()
    held.assert_detached([FILE])
    assert look.mount_flags(held.pid, FILE) == flags
    assert held.ask() == [FILE, CONTENT.upper()[10:]]


@NEEDS_CLONES
@pytest.mark.parametrize("placement", [*Placement], ids=str)
def test_source_of_tree(scenario: MakeScenario, placement: Placement, elsewhere: Path) -> None:
    """All mounts of an anonymous tree; its root alone cannot be, where a task puts it together."""
    held = scenario(placement, [Bind(), Bind(), Bind()], populate=with_deeper)
    held.start(hold_branches)
    with_deeper(elsewhere)
    tree, *_ = held.ask()
    roots = {"/file": "tree", "/dir/inner": "tree/dir", "/dir/deeper": "tree/file"}
    sources = [
        f"source {file.mnt_id} {written(elsewhere / roots[file.link])}"
        for _, file in sorted(look.open_files(held.pid).items())
        if file.link in roots
    ]
    held.dump().succeeded()
    (elsewhere / "tree" / "file").write_text(CONTENT.upper())
    if placement in (Placement.NAMESPACE, Placement.NAMESPACE_TMPFS):
        settings(held, sources[0])
        held.restore().failed("criu-detached: .*is of one tree with mount .*, which is supplied")
        held.assert_gone()
    settings(held, *sources)
    held.restore().succeeded()
    assert held.ask()[:2] == [tree, [CONTENT.upper(), "inner\n", CONTENT.upper()]]
    assert look.is_anonymous(held.pid, tree)


def test_source_of_saved_filesystem(scenario: MakeScenario, elsewhere: Path) -> None:
    """What the images would make anew is not made where the user has another place for it."""
    held = scenario().start(hold_file)
    held.ground.populate(elsewhere)
    kernel.umount2(held.ground.source, kernel.MNT_DETACH)
    name = mount_id(held, FILE)
    held.dump().succeeded()
    (elsewhere / "tree" / "file").write_text(CONTENT.upper())
    held.restore(*beside_images(held, "source", name, written(elsewhere))).succeeded()
    assert held.ask() == CONTENT.upper()


@WAYS
@pytest.mark.parametrize("placement", [Placement.HOST, Placement.HOST_SOURCE], ids=str)
def test_map(scenario: MakeScenario, placement: Placement, way: Way, elsewhere: Path) -> None:
    """Where all sources have moved, one setting tells of all; the longest that fits counts."""
    binds = [Bind(shape) for shape in SHAPES]
    held = scenario(placement, binds).start(hold_much)
    old = held.ground.source.parent
    volume = elsewhere / "source"
    volume.mkdir()
    copy(held, volume)
    held.dump().succeeded()
    held.ground.clear()
    held.restore(*way(held, "map", str(old), written(elsewhere))).succeeded()
    assert held.ask() == MUCH
    assert (volume / "tree" / "dir" / "trace").exists()
    settings(held)
    assert held.cycle().ask() == MUCH


@pytest.fixture
def machine_settings() -> Any:
    """The settings of the whole machine, for this test alone."""
    path = Path("/etc/criu")
    path.mkdir(exist_ok=True)
    kernel.mount("settings", path, "tmpfs")
    yield path / NAME
    kernel.umount2(path)


def test_whole_machine(
    scenario: MakeScenario, placement: Placement, elsewhere: Path, machine_settings: Path
) -> None:
    """Engines that let no file be put beside the images have the settings of the machine."""
    held = scenario(placement).start(hold_file)
    held.ground.populate(elsewhere)
    name = mount_id(held, FILE)
    held.dump().succeeded()
    (elsewhere / "tree" / "file").write_text(CONTENT.upper())
    machine_settings.write_text(f"source {name} {written(elsewhere)}\nsource 4294967295 /\n")
    run = held.restore().succeeded()
    assert [line for line in run.warnings() if "4294967295, which the images do not know" in line]
    assert held.ask() == CONTENT.upper()


def test_map_stays_beneath(scenario: MakeScenario, elsewhere: Path) -> None:
    """The user's own path may lead through symlinks; what the images add to it may not."""
    held = scenario(binds=[Bind(SHAPES[1])]).start(hold_file)
    copy(held, elsewhere)
    held.dump().succeeded()
    (elsewhere.parent / "way").symlink_to(elsewhere.name)
    (elsewhere / "tree").rename(elsewhere / "moved")
    (elsewhere / "tree").symlink_to("moved")
    source = str(held.ground.source)
    way = str(elsewhere.parent / "way")
    held.restore(*beside_images(held, "map", source, way)).failed(
        "criu-detached: .*is a symlink, it was a directory"
    )
    held.assert_gone()
    (elsewhere / "tree").unlink()
    (elsewhere / "moved").rename(elsewhere / "tree")
    held.restore(*beside_images(held, "map", source, way)).succeeded()
    assert held.ask() == CONTENT


def test_refused(scenario: MakeScenario, elsewhere: Path) -> None:
    """Each mistake is told in one line, before there is a task; nothing is left of it."""
    held = scenario(binds=[Bind(SHAPES[1])]).start(hold_file)
    tree = copy(held, elsewhere)
    name = mount_id(held, FILE)
    held.dump().succeeded()
    for line, why in {
        "source 4294967295 /": "source is given for mount 4294967295, which the images do not know",
        f"source {name} tree": "tree is no absolute path",
        f"source {name}": "is not a mount id and a path",
        f"source /tree {name}": "/tree is no mount id",
        f"source {name} {tree}": "is not a mount id and a path",  # a blank that is not escaped
        f"source {name} {written(tree)}/absent": "absent, the source for mount .*No such file",
        f"source {name} {written(tree)}/file": "is a regular file, it was a directory",
        f"source {name} {written(tree)}/dir": "can't open file on mount",
        "map /tree": "is not two paths",
        "external some": "some is no mount id",
        "supply 1 /": "supply: there is no such setting",
    }.items():
        settings(held, line)
        run = held.restore().failed(f"criu-detached: .*{why}")
        assert len([text for text in run.errors() if "criu-detached: " in text]) == 1, line
        held.assert_gone()
    settings(held, f"source {name} {written(tree)}")
    held.restore().succeeded()
    assert held.ask() == CONTENT


def test_deleted_with_another_name(scenario: MakeScenario) -> None:
    """Without a source there is nowhere to look for the name that is left: refused at dump."""

    def hold_linked(task: Task) -> Check:
        fd = os.open(task.path("other"), os.O_RDONLY)
        os.link(task.path("other"), task.path("another"))
        os.unlink(task.path("other"))
        task.detach()
        return lambda: os.pread(fd, 9, 0).decode()

    held = scenario().start(hold_linked)
    settings(held, f"external {mount_id(held, FILE)}")
    held.dump().failed("criu-detached: .*deleted or so named")
    assert held.ask() == "other\n"


@pytest.mark.parametrize("placement", [Placement.HOST, Placement.HOST_SOURCE], ids=str)
def test_bound_socket(scenario: MakeScenario, placement: Placement, elsewhere: Path) -> None:
    """Its name leads to what is supplied, if that has its directory and can be written."""
    held = scenario(placement, [Bind(), Bind()]).start(hold_datagrams, absolute=True)
    tree = copy(held, elsewhere)
    name = mount_id(held, FILE + 2)
    kernel.umount2(held.ground.source, kernel.MNT_DETACH)
    settings(held, f"external {name}")
    held.dump().succeeded()
    settings(held, f"source {name} {written(elsewhere)}")
    (tree / "dir").rename(tree / "elsewhere")
    held.restore().failed("criu-detached: .*directory of the socket .*/socket on .*not there")
    (tree / "elsewhere").rename(tree / "dir")
    kernel.mount("", elsewhere, "", kernel.MS_REMOUNT | kernel.MS_RDONLY)
    held.restore().failed("criu-detached: .*the socket .* cannot be bound .*read-only by now")
    held.assert_gone()
    kernel.mount("", elsewhere, "", kernel.MS_REMOUNT)
    held.restore().succeeded()
    bound = f"{held.ground.points()[0]}/tree/{SOCKET_NAME}"
    assert held.ask() == [bound, bound, ["waiting", "new", "by name"], True]
    assert (tree / SOCKET_NAME).is_socket()


def test_show(scenario: MakeScenario, placement: Placement) -> None:
    """The command lists the mounts of images under the names that settings have for them."""
    held = scenario(placement, [Bind(), Bind(SHAPES[1])]).start(hold_much)
    name = mount_id(held, FILE)
    command = [str(default_plugins() / "criu_detached" / "criu-detached"), "show", str(held.images)]
    for line, origin in {
        "# nothing": f"bind source: .*{held.ground.source.name}",
        f"external {name}": f'to be supplied: "source {name} PATH"',
    }.items():
        settings(held, line)
        held.dump("--leave-running").succeeded()
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        assert re.search(rf"^{name} +tmpfs +\d.*  {origin}", said, re.MULTILINE), said
