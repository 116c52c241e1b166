"""Filesystems that are mounted nowhere any more, but lie on a device: they are mounted again."""

from __future__ import annotations

import fcntl
import mmap
import os
import re
import shutil
import struct
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from .. import disks
from ..conftest import MakeScenario
from ..disks import Disk
from ..harness import kernel, look
from ..harness.agent import Check, Task
from ..harness.kernel import MNT_DETACH, MS_RDONLY, umount2
from ..harness.placement import DIRECTORY, SUBDIRECTORY, Bind, Placement
from ..harness.scenario import Scenario

pytestmark = pytest.mark.detached

DIGITS = "0123456789"


def populate(source: Path) -> None:
    """What every filesystem can hold."""
    (source / "tree" / "dir").mkdir(parents=True)
    (source / "tree" / "file").write_text(DIGITS)
    (source / "tree" / "mapped").write_bytes(b"a" * mmap.PAGESIZE)


def hold_files(task: Task) -> Check:
    """Files, mappings, a working directory and a deleted file; a check writes to all of them."""
    fd = os.open(task.path("file"), os.O_RDWR)
    log = os.open(task.path("file"), os.O_WRONLY | os.O_APPEND)
    directory = os.open(task.path(), os.O_RDONLY)
    by_path = os.open(task.path("dir"), os.O_PATH)
    with open(task.path("mapped"), "r+b") as file:
        shared = mmap.mmap(file.fileno(), 0)
        private = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE)
    private[:7] = b"private"
    os.chdir(task.path("dir"))
    deleted = os.open("deleted", os.O_RDWR | os.O_CREAT)
    os.write(deleted, b"deleted")
    os.unlink("deleted")
    task.detach()

    def check() -> list[Any]:
        os.write(log, b"+")
        shared[0] += 1
        with open("../mapped", "rb") as mapped, open("new", "a") as new:
            assert mapped.read(1) == shared[:1]
            new.write("new\n")
        return [
            os.pread(fd, 10, 0).decode(),
            os.pread(deleted, 10, 0).decode(),
            private[:7].decode(),
            sorted(os.listdir(directory)),
            os.path.samestat(os.fstat(by_path), os.stat(".")),
        ]

    return check


def detach_source(held: Scenario) -> Scenario:
    """Unmount what the processes hold where it can still be seen."""
    umount2(held.ground.source, MNT_DETACH)
    return held


def survives_twice(held: Scenario) -> None:
    """Dumped and restored twice, with a check before, between and after."""
    expected = held.ask()
    for _ in range(2):
        held.cycle()
        assert held.ask() == expected


def written_thrice(tree: Path) -> None:
    """What three checks of hold_files leave."""
    assert (tree / "dir" / "new").read_text() == "new\n" * 3
    assert (tree / "file").read_text() == DIGITS + "+++"
    assert (tree / "mapped").read_bytes()[:2] == b"da"
    assert os.listdir(tree / "dir") == ["new"]


@pytest.mark.covers(
    *["file", "directory", "o_append", "o_path", "cwd", "shared_mapping", "private_mapping"],
    "deleted_file",
    column="sole-held",
)
@pytest.mark.parametrize("fs_type", sorted([*disks.MAKERS, *disks.MORE_MAKERS]))
def test_disk(scenario: MakeScenario, tmp_path: Path, fs_type: str) -> None:
    """What was written before, between and after is on the device in the end."""
    with disks.disk(tmp_path, fs_type) as disk:
        held = scenario(mount_source=disk.mount, populate=populate).start(hold_files)
        survives_twice(detach_source(held))
        held.kill()
        disk.mount(held.ground.source)
        written_thrice(held.ground.source / "tree")
        umount2(held.ground.source)


def test_namespace(scenario: MakeScenario, tmp_path: Path) -> None:
    """A process in a mount namespace of its own."""
    with disks.disk(tmp_path, "ext4") as disk:
        held = scenario(Placement.HOST_SOURCE, mount_source=disk.mount, populate=populate)
        survives_twice(detach_source(held.start(hold_files)))


def populate_unix(source: Path) -> None:
    """What vfat cannot hold."""
    populate(source)
    tree = source / "tree"
    (tree / "link").symlink_to("file")
    os.mkfifo(tree / "fifo")
    os.mknod(tree / "zero", 0o20666, os.makedev(1, 5))
    os.link(tree / "file", tree / "other")


def hold_more(task: Task) -> Check:
    """Files of other types, a lock, a root, and files whose names are gone."""
    link = os.open(task.path("link"), os.O_PATH | os.O_NOFOLLOW)
    fifo = os.open(task.path("fifo"), os.O_RDWR | os.O_NONBLOCK)
    zero = os.open(task.path("zero"), os.O_RDONLY)
    file = os.open(task.path("file"), os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECT)
    linked = os.open(task.path("other"), os.O_RDWR)
    os.unlink(task.path("other"))
    os.mkdir(task.path("gone"))
    gone = os.open(task.path("gone"), os.O_RDONLY)
    os.rmdir(task.path("gone"))
    locked = os.open(task.path("mapped"), os.O_RDWR)
    probe = os.open(task.path("mapped"), os.O_RDWR)

    def live_in_root() -> Check:
        os.close(locked)
        os.chroot(task.path())
        os.chdir("/dir")

        def check() -> list[Any]:
            same = os.path.samestat(os.stat("/file"), os.fstat(file))
            try:
                fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return [os.getcwd(), same, "locked"]
            return [os.getcwd(), same, "not locked"]

        return check

    ask_child = task.fork(live_in_root)
    fcntl.flock(locked, fcntl.LOCK_EX)
    task.detach()

    def check() -> list[Any]:
        os.write(fifo, b"through")
        return [
            os.readlink("", dir_fd=link),
            os.read(fifo, 10).decode(),
            os.read(zero, 2).hex(),
            os.pread(linked, 20, 0).decode(),
            os.path.samestat(os.fstat(linked), os.fstat(file)),
            os.fstat(gone).st_nlink,
            ask_child(),
        ]

    return check


@pytest.mark.covers(
    *["o_path_symlink", "fifo", "character_device", "o_nofollow", "o_direct", "flock", "root"],
    *["deleted_linked_file", "deleted_directory"],
    column="sole-held",
)
@pytest.mark.parametrize("fs_type", ["btrfs", "ext4", "xfs"])
def test_unix_disk(scenario: MakeScenario, tmp_path: Path, fs_type: str) -> None:
    with disks.disk(tmp_path, fs_type) as disk:
        held = scenario(mount_source=disk.mount, populate=populate_unix).start(hold_more)
        detach_source(held)
        expected = held.ask()
        held.dump("--file-locks").succeeded()
        held.restore("--file-locks").succeeded()
        assert held.ask() == expected


def hold_read_only(task: Task) -> Check:
    """A file, a mapping and a working directory on a filesystem that cannot be written."""
    fd = os.open(task.path("file"), os.O_RDONLY)
    with open(task.path("mapped"), "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ)
    os.chdir(task.path("dir"))
    task.detach()

    def check() -> list[Any]:
        try:
            os.mkdir("new")
            refused = ""
        except OSError as error:
            refused = os.strerror(error.errno or 0)
        return [os.pread(fd, 10, 0).decode(), mapped[:2].decode(), os.listdir(".."), refused]

    return check


@pytest.mark.parametrize("fs_type", sorted(disks.IMAGE_MAKERS))
def test_image(scenario: MakeScenario, tmp_path: Path, fs_type: str) -> None:
    """Images that nothing writes, and that mostly have no UUID."""
    with disks.image_disk(tmp_path, fs_type, populate) as disk:
        held = scenario(mount_source=disk.mount, populate=lambda _: None).start(hold_read_only)
        survives_twice(detach_source(held))


@pytest.mark.parametrize("fs_type", ["btrfs", "ext4", "vfat", "xfs"])
def test_read_only(scenario: MakeScenario, tmp_path: Path, fs_type: str) -> None:
    """The filesystem is read-only, although its device is not."""
    with disks.disk(tmp_path, fs_type) as disk:

        def mount_read_only(source: Path) -> None:
            disk.mount(source)
            populate(source)
            umount2(source)
            disk.mount(source, flags=MS_RDONLY)

        held = scenario(mount_source=mount_read_only, populate=lambda _: None)
        survives_twice(detach_source(held.start(hold_read_only)))


def hold_two_mounts(task: Task) -> Check:
    """A file through a mount, and a directory through another that is read-only."""
    fd = os.open(task.path("file", 0), os.O_RDWR)
    directory = os.open(task.path("", 1), os.O_RDONLY)
    task.detach()

    def check() -> list[Any]:
        try:
            os.mkdir("new", dir_fd=directory)
            refused = ""
        except OSError as error:
            refused = os.strerror(error.errno or 0)
        same = os.path.samestat(os.stat("file", dir_fd=directory), os.fstat(fd))
        return [os.write(fd, b"+"), same, os.listdir(directory), refused]

    return check


def test_two_mounts(scenario: MakeScenario, tmp_path: Path) -> None:
    """Two mounts of one filesystem, with other roots and flags, are of one again."""
    binds = [Bind(DIRECTORY), Bind(SUBDIRECTORY, MS_RDONLY)]
    with disks.disk(tmp_path, "ext4") as disk:
        held = scenario(binds=binds, mount_source=disk.mount, populate=populate)
        survives_twice(detach_source(held.start(hold_two_mounts)))


def super_options(path: Path) -> set[str]:
    """The options that the filesystem mounted at a path shows."""
    (line,) = [line for line in look.mount_table() if f" {path} " in line]
    return set(line.split(" - ")[1].split()[2].split(","))


@pytest.mark.parametrize(
    ("fs_type", "options"),
    [
        ("btrfs", "compress=zstd:5,nodatacow,commit=7"),
        ("ext4", "errors=remount-ro,data=journal,commit=7,nodelalloc"),
        ("vfat", "uid=7,gid=8,fmask=0077,shortname=winnt,sync"),
        ("xfs", "allocsize=64k,wsync,noalign,sync"),
    ],
)
def test_options(scenario: MakeScenario, tmp_path: Path, fs_type: str, options: str) -> None:
    """Options of the filesystem, seen by a mount that shares it."""
    with disks.disk(tmp_path, fs_type) as disk:
        held = scenario(
            mount_source=lambda source: disk.mount(source, options), populate=populate
        ).start(hold_files)
        before = super_options(held.ground.source)
        survives_twice(detach_source(held))
        disk.mount(held.ground.source)
        assert super_options(held.ground.source) == before


def test_shared(scenario: MakeScenario, tmp_path: Path) -> None:
    """Someone else has a file on the filesystem all the time: nobody gets a copy."""
    with disks.disk(tmp_path, "ext4") as disk:
        held = scenario(mount_source=disk.mount, populate=populate).start(hold_files)
        with open(held.ground.source / "tree" / "file") as other:
            survives_twice(detach_source(held))
            assert other.read() == DIGITS + "+++"


def test_covered(scenario: MakeScenario, tmp_path: Path) -> None:
    """It is mounted where nobody can reach it: shared with that mount, before and after."""
    with disks.disk(tmp_path, "ext4") as disk:
        held = scenario(mount_source=disk.mount, populate=populate).start(hold_files)
        source = held.ground.source
        kernel.mount("cover", source, "tmpfs")
        survives_twice(held)
        umount2(source)
        written_thrice(source / "tree")


def hold_image(scenario: MakeScenario, disk: Disk) -> Scenario:
    """A process on a filesystem whose loop device goes when it is unmounted."""
    held = scenario(mount_source=disk.mount, populate=populate).start(hold_files)
    detach_source(held)
    disk.detach()
    assert held.ask()
    return held


def refused(held: Scenario, disk: Disk, *patterns: str) -> None:
    """The restore fails and says why; no task, no mount and no loop device is left."""
    before = look.mount_table(), disks.devices_over(disk.image)
    run = held.restore()
    assert run.status, "restored"
    for pattern in patterns:
        run.failed(f"criu-detached: .*{pattern}")
    held.assert_gone()
    assert (look.mount_table(), disks.devices_over(disk.image)) == before


def test_autoclear(scenario: MakeScenario, tmp_path: Path) -> None:
    """A loop device that went with the last mount is set up again, as it was, and goes again."""
    content = tmp_path / "content"
    disks.make_filesystem(content, "ext4")
    image, size = tmp_path / "a b, c", content.stat().st_size
    image.write_bytes(bytes(1 << 20) + content.read_bytes() + bytes(1 << 20))
    options = ["--offset", str(1 << 20), "--sizelimit", str(size), "--sector-size", "4096"]
    columns = "OFFSET,SIZELIMIT,AUTOCLEAR,RO,LOG-SEC"

    def seen() -> str:
        command = ["losetup", "--associated", str(image), "--raw", "-n", "--output", columns]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    with disks.loop_device(image, *options) as device:
        disk = Disk(device, "ext4", image)
        held = hold_image(scenario, disk)
        before = seen()
        assert before.split() == [str(1 << 20), str(size), "1", "0", "4096"]
        for _ in range(2):
            held.dump().succeeded()
            assert seen() == ""
            held.restore().succeeded()
            assert seen() == before
            assert held.ask()
        held.kill()
        assert seen() == ""
    with disks.loop_device(image, *options) as device:
        Disk(device, "ext4", image).mount(held.ground.source)
        assert (held.ground.source / "tree" / "dir" / "new").read_text() == "new\n" * 3
        umount2(held.ground.source)


def test_moved_image(scenario: MakeScenario, tmp_path: Path) -> None:
    """An image that was moved is found when there is a device over it again."""
    with disks.disk(tmp_path, "ext4") as disk:
        held = hold_image(scenario, disk)
        held.dump().succeeded()
        moved = disk.image.rename(tmp_path / "moved")
        name = re.escape(str(disk.image))
        refused(held, disk, rf"no block device carries .*ext4.*{name}.*No such file")
        shutil.copy(moved, tmp_path / "copy")
        with disks.loop_device(moved), disks.loop_device(tmp_path / "copy"):
            refused(held, disk, "which one is it")
        with disks.loop_device(moved):
            held.restore().succeeded()
            assert held.ask()
            held.kill()


def test_image_of_two_names(scenario: MakeScenario, tmp_path: Path) -> None:
    """The image is mounted by another name of it: one device for both, or both would write."""
    with disks.disk(tmp_path, "ext4") as disk:
        held = hold_image(scenario, disk)
        expected = held.ask()
        held.dump().succeeded()
        other = tmp_path / "other"
        os.link(disk.image, other)
        with disks.loop_device(other) as device:
            Disk(device, "ext4", other).mount(held.ground.source)
            held.restore().succeeded()
            assert disks.devices_over(disk.image) == [device]
            assert held.ask() == expected
            umount2(held.ground.source)
            held.kill()


def test_partition(scenario: MakeScenario, tmp_path: Path) -> None:
    """A partition of an image with a partition table."""
    content, image = tmp_path / "content", tmp_path / "image"
    disks.make_filesystem(content, "ext4")
    start, size = 2048, content.stat().st_size // 512
    entry = struct.pack("<B3sB3sII", 0, bytes(3), 0x83, bytes(3), start, size)
    table = bytes(446) + entry + bytes(48) + b"\x55\xaa"
    image.write_bytes(table.ljust(start * 512, b"\0") + content.read_bytes())
    with disks.loop_device(image, "--partscan") as device:
        partition = f"{device}p1"
        if not os.path.exists(partition):
            pytest.skip("this kernel has no devtmpfs in a container, so nothing makes device nodes")
        held = hold_image(scenario, Disk(partition, "ext4", image))
        expected = held.ask()
        held.dump().succeeded()
        assert disks.devices_over(image) == []
        held.restore().succeeded()
        assert held.ask() == expected
        held.kill()
        assert disks.devices_over(image) == []


@pytest.mark.parametrize("damage", ["other", "none", "cut"])
def test_other_image(scenario: MakeScenario, tmp_path: Path, damage: str) -> None:
    """The image has another filesystem by now, none, or is cut off."""
    with disks.disk(tmp_path, "ext4") as disk:
        held = hold_image(scenario, disk)
        held.dump().succeeded()
        kept = disk.image.rename(tmp_path / "kept")
        disk.image.touch()
        if damage == "other":
            disks.make_filesystem(disk.image, "ext4")
        elif damage == "none":
            os.truncate(disk.image, kept.stat().st_size)
        else:
            shutil.copy(kept, disk.image)
            os.truncate(disk.image, 64 << 10)
        refused(held, disk, "ext4")
        assert disks.devices_over(disk.image) == []
        kept.rename(disk.image)
        held.restore().succeeded()
        assert held.ask()


def test_other_device(scenario: MakeScenario, tmp_path: Path) -> None:
    """The device's number is another's by now, and the image is on another device."""
    with disks.disk(tmp_path, "xfs") as disk:
        held = hold_image(scenario, disk)
        expected = held.ask()
        held.dump().succeeded()
        other = tmp_path / "other"
        disks.make_filesystem(other, "vfat")
        subprocess.run(["losetup", disk.device, str(other)], check=True)
        try:
            held.restore().succeeded()
            assert held.ask() == expected
        finally:
            disks.detach(other)


@pytest.mark.parametrize("fs_type", ["btrfs", "ext4", "xfs"])
def test_mounted_elsewhere(scenario: MakeScenario, tmp_path: Path, fs_type: str) -> None:
    """Someone has mounted it meanwhile: it is shared, if it is mounted as it was."""
    conflict = {"btrfs": "nobarrier", "ext4": "errors=panic", "xfs": "wsync"}[fs_type]
    with disks.disk(tmp_path, fs_type) as disk:
        held = scenario(mount_source=disk.mount, populate=populate).start(hold_files)
        source = held.ground.source
        expected = detach_source(held).ask()
        held.dump().succeeded()
        disk.mount(source, flags=MS_RDONLY)
        refused(held, disk, f"{fs_type} on {disk.device}.*mounted")
        umount2(source)
        disk.mount(source, conflict)
        refused(held, disk, f"{conflict}.*mounted elsewhere")
        umount2(source)
        disk.mount(source)
        held.restore().succeeded()
        assert held.ask() == expected
        assert (source / "tree" / "file").read_text() == DIGITS + "++"


def unlink(image: Path) -> None:
    """The image has no name any more."""
    image.unlink()


def unmount(image: Path) -> None:
    """What the image lies on is mounted nowhere any more."""
    umount2(image.parent, MNT_DETACH)


@pytest.mark.covers("file", outcome="refused", column="sole-held")
@pytest.mark.parametrize("hide", [unlink, unmount])
def test_hidden_image(scenario: MakeScenario, tmp_path: Path, hide: Callable[[Path], None]) -> None:
    """What no restore could find is refused while the process lives."""
    kernel.mount("images", tmp_path, "tmpfs")
    try:
        with disks.disk(tmp_path, "ext4") as disk:
            held = hold_image(scenario, disk)
            expected = held.ask()
            hide(disk.image)
            held.dump().failed("criu-detached: .*backing file .*is not there")
            assert held.ask() == expected
            held.kill()
    finally:
        if os.path.ismount(tmp_path):
            umount2(tmp_path, MNT_DETACH)


def test_full_disk(scenario: MakeScenario, tmp_path: Path) -> None:
    """There is no room for a deleted file by now; what was made of it is gone again."""
    with disks.disk(tmp_path, "ext4") as disk:
        held = scenario(mount_source=disk.mount, populate=populate).start(hold_files)
        source = held.ground.source
        expected = detach_source(held).ask()
        held.dump().succeeded()
        disk.mount(source)
        with open(source / "filler", "wb", 0) as filler, suppress(OSError):
            while filler.write(bytes(1 << 12)):
                pass
        names = sorted(source.rglob("*"))
        umount2(source)
        refused(held, disk, "can't make the deleted files of .*No space left")
        disk.mount(source)
        assert sorted(source.rglob("*")) == names
        (source / "filler").unlink()
        umount2(source)
        held.restore().succeeded()
        assert held.ask() == expected


def test_members(scenario: MakeScenario, tmp_path: Path) -> None:
    """A btrfs of two devices, of which a subvolume was mounted."""
    with disks.disk(tmp_path, "btrfs") as disk:
        other = tmp_path / "other"
        other.touch()
        os.truncate(other, disk.image.stat().st_size)
        with disks.loop_device(other) as second:
            mount_point = tmp_path / "mount"
            mount_point.mkdir()
            disk.mount(mount_point)
            btrfs = ["btrfs", "--quiet"]
            subprocess.run([*btrfs, "device", "add", second, str(mount_point)], check=True)
            volume = mount_point / "volume"
            subprocess.run([*btrfs, "subvolume", "create", str(volume)], check=True)
            umount2(mount_point)
            held = scenario(
                mount_source=lambda source: disk.mount(source, "subvol=volume"), populate=populate
            ).start(hold_files)
            expected = detach_source(held).ask()
            disk.detach()
            disks.detach(other)
            held.dump().succeeded()
            subprocess.run([*btrfs, "device", "scan", "--forget"], check=True)
            kept = other.rename(tmp_path / "kept")
            refused(held, disk, f"no block device carries.*btrfs.*{re.escape(str(other))}")
            kept.rename(other)
            held.restore().succeeded()
            assert held.ask() == expected
            held.kill()
