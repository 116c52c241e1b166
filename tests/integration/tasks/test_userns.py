"""A process in user, PID and mount namespaces of its own: all comes back as those saw it."""

from __future__ import annotations

import mmap
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .. import disks
from ..conftest import MakeScenario
from ..harness import kernel, look
from ..harness.agent import Check, Task
from ..harness.kernel import MNT_DETACH, umount2
from ..harness.placement import (
    CONTENT,
    USERNS_MAP,
    USERNS_ROOT,
    Bind,
    Placement,
    populate_tree,
    user_namespace,
)
from ..harness.program import Program
from ..mounts.test_idmap import hold_owned
from ..sockets.test_sole_sockets import hold_nothing_else
from ..soleheld import sole

INSIDE = pytest.mark.parametrize(
    "placement",
    [Placement.NAMESPACE, Placement.NAMESPACE_TMPFS, Placement.HOST_SOURCE],
    ids=lambda placement: placement.value,
)
OWNER = [7, 8]  # as the namespace sees it
# What is mounted anew is the host's, so it gives no privileges to a user namespace.
CONFINED = os.ST_NOSUID | os.ST_NODEV


def hold_life(task: Task) -> Check:
    """Files of every kind that a user namespace can make, with owners that it has."""
    os.chown(task.path("file"), *OWNER)
    file = os.open(task.path("file"), os.O_RDWR | os.O_APPEND)
    os.read(file, 10)
    by_path = os.open(task.path("file"), os.O_PATH)
    directory = os.open(task.path(), os.O_RDONLY)
    os.chdir(task.path("dir"))
    symlink = os.open(task.path("link"), os.O_PATH | os.O_NOFOLLOW)
    fifo = os.open(task.path("fifo"), os.O_RDWR | os.O_NONBLOCK)
    mapped = os.open(task.path("other"), os.O_RDWR)
    shared, private = mmap.mmap(mapped, 6), mmap.mmap(mapped, 6, mmap.MAP_PRIVATE)
    private[:1] = b"P"
    deleted = os.open("deleted", os.O_RDWR | os.O_CREAT, 0o640)
    os.write(deleted, b"deleted")
    os.chown(deleted, *OWNER)
    os.unlink("deleted")
    linked = os.open("linked", os.O_RDWR | os.O_CREAT)
    os.chown(linked, *OWNER)
    os.link("linked", "left")
    os.unlink("linked")
    unnamed = os.open(".", os.O_RDWR | os.O_TMPFILE)
    os.chown(unnamed, *OWNER)
    task.detach()

    def check() -> dict[str, Any]:
        os.write(fifo, b"through")
        shared[:1] = b"S"
        with open("new", "w") as new:  # through the working directory
            created = [os.fstat(new.fileno()).st_uid, os.fstat(new.fileno()).st_gid]
        os.unlink("new")
        held = {"file": file, "by path": by_path, "deleted": deleted, "linked": linked}
        facts = {name: os.fstat(fd) for name, fd in {**held, "unnamed": unnamed}.items()}
        return {
            "owners": {name: [fact.st_uid, fact.st_gid] for name, fact in facts.items()},
            "links": [facts[name].st_nlink for name in ("file", "deleted", "linked", "unnamed")],
            "position": os.lseek(file, 0, os.SEEK_CUR),
            "content": os.pread(file, 100, 0).decode(),
            "deleted": os.pread(deleted, 10, 0).decode(),
            "symlink": os.readlink("", dir_fd=symlink),
            "fifo": os.read(fifo, 10).decode(),
            "mapped": [os.pread(mapped, 6, 0).decode(), private[:].decode()],
            "names": sorted(os.listdir(directory)),
            "here": sorted(os.listdir(".")),
            "created": created,
            "filesystems": len({fact.st_dev for fact in facts.values()}),
        }

    return check


ITEMS = [
    *["file", "directory", "o_path", "o_path_symlink", "o_append", "fifo", "o_tmpfile", "cwd"],
    *["shared_mapping", "private_mapping", "deleted_file", "deleted_linked_file"],
]


@pytest.mark.covers(*ITEMS)
@INSIDE
def test_life(scenario: MakeScenario, placement: Placement) -> None:
    held = scenario(placement, userns=True).start(hold_life)
    survives(held.ask(), held)


@pytest.mark.detached
@pytest.mark.covers(*ITEMS, column="anonymous")
def test_anonymous(scenario: MakeScenario) -> None:
    held = scenario(Placement.NAMESPACE_TMPFS, userns=True, in_trees=True).start(hold_life)
    survives(held.ask(), held)


def survives(expected: dict[str, Any], held: Any) -> None:
    """Dumped and restored twice; nothing has changed, owners as the namespace sees them."""
    assert set(map(tuple, expected["owners"].values())) == {tuple(OWNER)}
    assert expected["content"] == CONTENT and expected["created"] == [0, 0]
    for _ in range(2):
        links = {fd: file.link for fd, file in look.open_files(held.pid).items()}
        held.dump(*["--link-remap"] * held.ground.attached).succeeded()
        held.restore().succeeded()
        assert held.ask() == expected
        restored = {fd: file.link for fd, file in look.open_files(held.pid).items()}
        assert without_unnamed(restored) == without_unnamed(links)
        assert Path(f"/proc/{held.pid}/uid_map").read_text().split() == ["0", "100000", "65536"]
    held.assert_detached([3])


def without_unnamed(links: dict[int, str]) -> dict[int, str]:
    """A file that never had a name has its inode number in its link."""
    return {fd: link for fd, link in links.items() if "#" not in link}


@pytest.mark.detached
@pytest.mark.covers(*ITEMS, column="sole-held")
@INSIDE
def test_sole_held(scenario: MakeScenario, placement: Placement) -> None:
    """A tmpfs of the host's, or one that was mounted in the namespace: both become the host's."""
    held = scenario(placement, populate=without_devices, userns=True).start(hold_life)
    sole(held)
    survives(held.ask(), held)
    assert look.mount_flags(held.pid, 3) & CONFINED == CONFINED
    found = os.stat(f"/proc/{held.pid}/fd/3")
    assert [found.st_uid, found.st_gid] == [USERNS_ROOT + number for number in OWNER]


def without_devices(source: Path) -> None:
    """What the tasks could have made themselves."""
    populate_tree(source)
    for name in ("null", "zero"):
        (source / "tree" / name).unlink(missing_ok=True)


def nothing_more(source: Path) -> None:
    """The files are there already."""


def hold_socket(task: Task) -> Check:
    """A listening socket with an owner of the namespace; a check connects to it."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(task.path("dir/socket"))
    os.chown(task.path("dir/socket"), *OWNER)
    os.chmod(task.path("dir/socket"), 0o660)
    server.listen()
    here = os.open(task.path("dir"), os.O_RDONLY)
    task.detach()

    def check() -> Any:
        client = socket.socket(socket.AF_UNIX)
        client.connect(f"/proc/self/fd/{here}/socket")
        accepted, _ = server.accept()
        client.send(b"question")
        facts = os.stat("socket", dir_fd=here)
        answer = [accepted.recv(10).decode(), facts.st_uid, facts.st_gid, oct(facts.st_mode)]
        accepted.close()
        client.close()
        return [server.getsockname(), *answer]

    return check


@pytest.mark.covers("unix_socket")
@INSIDE
def test_socket(scenario: MakeScenario, placement: Placement) -> None:
    """The network is the host's, so the tasks may not ask for the file of their socket."""
    held = scenario(placement, userns=True).start(hold_socket)
    for _ in range(2):
        held.cycle()
        assert held.ask() == ["/mnt/point0/tree/dir/socket", "question", *OWNER, "0o140660"]


@pytest.mark.detached
@pytest.mark.covers("unix_socket", column="sole-held")
@pytest.mark.parametrize("program", [hold_socket, hold_nothing_else], ids=lambda p: p.__name__)
def test_sole_held_socket(scenario: MakeScenario, program: Program) -> None:
    """Bound in directories that are made anew, also where nothing else in them is known."""
    arguments = {"absolute": True, "gone": False} if program is hold_nothing_else else {}
    held = scenario(Placement.NAMESPACE_TMPFS, populate=without_devices, userns=True)
    sole(held.start(program, **arguments))
    expected = held.ask()
    held.cycle().cycle()
    assert held.ask() == expected


def hold_privileged(task: Task) -> Check:
    """A file beside which there is something that only the host can give."""
    fd = os.open(task.path("file"), os.O_RDONLY)
    directory = os.open(task.path(), os.O_RDONLY)
    task.detach()
    return lambda: [os.pread(fd, 100, 0).decode(), len(os.listdir(directory))]


def with_device(source: Path) -> None:
    """A node of a device that the tasks must not get."""
    (source / "tree").mkdir()
    (source / "tree" / "file").write_text(CONTENT)
    os.mknod(source / "tree" / "disk", 0o60666, os.makedev(7, 0))


def with_setuid(source: Path) -> None:
    """A program that changes the user to the one who started criu."""
    (source / "tree").mkdir()
    (source / "tree" / "file").write_text(CONTENT)
    (source / "tree" / "program").touch()
    (source / "tree" / "program").chmod(0o4755)


@pytest.mark.detached
@pytest.mark.parametrize(
    ("populate", "why"), [(with_device, "is a device"), (with_setuid, "changes user or group")]
)
def test_privileged_contents(scenario: MakeScenario, populate: Any, why: str) -> None:
    """A filesystem that is made anew takes nothing along that gives privileges."""
    held = scenario(Placement.NAMESPACE, populate=populate, userns=True).start(hold_privileged)
    sole(held).dump().failed(f"criu-detached.*{why}.*user namespace")
    assert held.ask() == [CONTENT, 2]


@pytest.mark.detached
@pytest.mark.covers("file", "directory", "cwd", "deleted_file", column="sole-held")
def test_disk(scenario: MakeScenario, tmp_path: Path) -> None:
    """A filesystem on a block device that the host had mounted for the namespace."""
    with disks.disk(tmp_path, "ext4") as disk:
        held = scenario(Placement.HOST_SOURCE, mount_source=disk.mount, userns=True)
        held.start(hold_life)
        umount2(held.ground.source, MNT_DETACH)
        survives(held.ask(), held)
        assert look.mount_flags(held.pid, 3) & CONFINED == CONFINED


def hold_device(task: Task) -> Check:
    """An open device of the host's; it was opened before its mount went away."""
    fd = os.open(task.path("null"), os.O_RDWR)
    task.detach()
    return lambda: os.write(fd, b"x")


@pytest.mark.covers("character_device")
def test_device_of_the_host(scenario: MakeScenario) -> None:
    """A bind of a host's filesystem may have devices; its clone has them as well."""
    held = scenario(Placement.NAMESPACE, userns=True).start(hold_device)
    held.cycle()
    assert held.ask() == 1


@pytest.mark.detached
def test_device_on_disk(scenario: MakeScenario, tmp_path: Path) -> None:
    """Mounted again it would be nodev, so the device could not be opened."""
    with disks.disk(tmp_path, "ext4") as disk:
        held = scenario(Placement.HOST_SOURCE, mount_source=disk.mount, userns=True)
        held.start(hold_device)
        umount2(held.ground.source, MNT_DETACH)
        held.dump().failed("criu-detached.*is a device.*nodev")
        assert held.ask() == 1


@pytest.fixture
def mapped_to_namespace(mapped_ids: None) -> Iterator[int]:
    """A user namespace for id-mapped mounts, with the map that the processes have."""
    with user_namespace(USERNS_MAP) as fd:
        yield fd


@pytest.mark.detached
@pytest.mark.parametrize("placement", [Placement.NAMESPACE, Placement.HOST_SOURCE])
def test_id_mapped_volume(
    scenario: MakeScenario, placement: Placement, mapped_to_namespace: int
) -> None:
    """An id-mapped volume is bound into the container: its clone has the id-map by itself."""

    def mount_mapped(source: Path) -> None:
        kernel.mount("source", source, "tmpfs")
        populate_tree(source)
        tree = kernel.open_tree(-100, str(source), kernel.OPEN_TREE_CLONE)
        kernel.mount_setattr_idmap(tree, mapped_to_namespace)
        umount2(source, MNT_DETACH)
        kernel.move_mount(tree, source)
        os.close(tree)

    held = scenario(placement, mount_source=mount_mapped, populate=nothing_more, userns=True)
    held.ground.shifts_owners = False
    held.start(hold_owned)
    assert held.ask() == [0, 0]
    held.cycle().cycle()
    assert held.ask() == [0, 0]


@pytest.mark.detached
@pytest.mark.parametrize("placement", [Placement.NAMESPACE, Placement.HOST_SOURCE])
def test_id_mapped_mount(
    scenario: MakeScenario, placement: Placement, mapped_to_namespace: int
) -> None:
    """The detached mount alone is id-mapped. A task may not do so with the host's: criu does."""
    held = scenario(placement, [Bind(userns=mapped_to_namespace)], userns=True)
    held.ground.shifts_owners = False
    held.start(hold_owned)
    assert held.ask() == [0, 0]
    if not kernel.has_statmount_by_fd():
        held.dump().failed("criu-detached.*id-mapped")
        assert held.ask() == [0, 0]
        return
    held.cycle().cycle()
    assert held.ask() == [0, 0]


def mount_two(source: Path) -> None:
    """A filesystem with another one on it: inherited, they are locked to each other."""
    kernel.mount("source", source, "tmpfs")
    populate_tree(source)
    kernel.mount("below", source / "tree" / "dir", "tmpfs")
    (source / "tree" / "dir" / "inner").write_text("on the other\n")


def hold_locked_together(task: Task, name: str) -> Check:
    """A file on one of two mounts that the host has put on each other."""
    fd = os.open(task.path(name), os.O_RDONLY)
    task.detach()
    return lambda: os.pread(fd, 100, 0).decode()


@pytest.mark.detached
@pytest.mark.parametrize("name", ["file", "dir/inner"])
def test_locked_together(scenario: MakeScenario, name: str) -> None:
    binds = [Bind(recursive=True)]

    how = {"mount_source": mount_two, "populate": nothing_more, "userns": True}
    held = scenario(Placement.HOST_SOURCE, binds, **how).start(hold_locked_together, name=name)
    held.cycle()
    assert held.ask() == (CONTENT if name == "file" else "on the other\n")
    held.assert_detached([3])


@pytest.mark.detached
def test_locked_source(scenario: MakeScenario) -> None:
    """What the host has mounted below the source is locked to it: it cannot be cloned alone."""

    how = {"mount_source": mount_two, "populate": nothing_more, "userns": True}
    held = scenario(Placement.NAMESPACE, [Bind(recursive=True)], **how)
    held.start(hold_locked_together, name="file")
    umount2(held.ground.source, MNT_DETACH)
    below = ["--external", "mnt[/mnt/source/tree/dir]:below"]
    held.dump(*below).failed("criu-detached.*locked")
    assert held.ask() == CONTENT
