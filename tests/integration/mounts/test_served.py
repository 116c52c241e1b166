"""Filesystems that another program serves: it alone can bring them back."""

from __future__ import annotations

import os
import stat
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from .. import disks
from ..conftest import MakeScenario
from ..harness import kernel, look
from ..harness.agent import Check, Task
from ..harness.kernel import MNT_DETACH, umount2
from ..harness.placement import CONTENT, Bind, Shape, populate_tree
from ..settings import beside_images

pytestmark = pytest.mark.detached

WHOLE = [Bind(Shape("whole", "", ""))]

# linux/fuse.h: the requests that an empty directory has to answer
FORGET, GETATTR, STATFS, INIT, OPENDIR, RELEASEDIR, BATCH_FORGET = 2, 3, 17, 26, 27, 29, 42
ENOSYS = 38
ATTRIBUTES = struct.pack(
    "=QII6Q10I", 3600, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, stat.S_IFDIR | 0o755, 2, 0, 0, 0, 4096, 0
)
ANSWERS = {
    GETATTR: ATTRIBUTES,
    STATFS: bytes(80),
    INIT: struct.pack("=6I", 7, 22, 0, 0, 0, 4096),  # version 7.22
    OPENDIR: bytes(16),
    RELEASEDIR: b"",
}


def serve(fuse: int) -> None:
    """Answer as an empty directory does, until the filesystem is gone."""
    while True:
        try:
            request = os.read(fuse, 1 << 17)
        except OSError:
            return
        opcode, unique = struct.unpack_from("=IQ", request, 4)
        if opcode not in (FORGET, BATCH_FORGET):
            body = ANSWERS.get(opcode, b"")
            error = 0 if opcode in ANSWERS else -ENOSYS
            os.write(fuse, struct.pack("=IiQ", 16 + len(body), error, unique) + body)


def open_fuse() -> int:
    """The kernel's side of a filesystem that is not mounted yet."""
    try:
        return os.open("/dev/fuse", os.O_RDWR)
    except OSError as error:
        pytest.skip(f"this kernel has no FUSE: {error}")


def mount_fuse(source: Path, serve: Callable[[int], None] = serve) -> None:
    """A FUSE filesystem that a process of its own serves."""
    fuse = open_fuse()
    options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0,allow_other"
    kernel.mount("served", source, "fuse", 0, options)
    if not os.fork():
        try:
            os.closerange(0, fuse)
            os.closerange(fuse + 1, 65536)
            serve(fuse)
        finally:
            os._exit(0)
    os.close(fuse)


def hold_directory(task: Task) -> Check:
    """The root directory."""
    top = os.open(task.path(), os.O_RDONLY | os.O_DIRECTORY)
    task.detach()
    return lambda: os.fstat(top).st_ino


@pytest.mark.covers("directory", column="sole-held", outcome="refused")
def test_fuse(scenario: MakeScenario) -> None:
    """The user is told what to do, and the process goes on."""
    held = scenario(binds=WHOLE, mount_source=mount_fuse, populate=lambda _: None)
    held.start(hold_directory)
    umount2(held.ground.source, MNT_DETACH)
    held.dump().failed("is of type FUSE.*: mount it somewhere before the dump")
    assert held.ask() == 1


def test_supplied(scenario: MakeScenario, tmp_path: Path) -> None:
    """The user has it served again, and says where that is."""
    held = scenario(binds=WHOLE, mount_source=mount_fuse, populate=lambda _: None)
    held.start(hold_directory)
    umount2(held.ground.source, MNT_DETACH)
    name = str(look.open_files(held.pid)[3].mnt_id)
    held.dump().failed(f'or supply it yourself at restore: .*"external {name}"')
    held.dump(*beside_images(held, "external", name)).succeeded()
    mount_fuse(tmp_path)
    try:
        held.restore(*beside_images(held, "source", name, str(tmp_path))).succeeded()
        assert held.ask() == 1
        assert os.stat(f"/proc/{held.pid}/fd/3").st_dev == tmp_path.stat().st_dev
    finally:
        held.kill()
        umount2(tmp_path)


def squashfuse(directory: Path) -> Callable[[Path], None]:
    """Makes an image of the usual tree; returns what has squashfuse serve it somewhere."""
    os.close(open_fuse())
    image = disks.make_image(directory, "squashfs", populate_tree)

    def mount(target: Path) -> None:
        subprocess.run(["squashfuse", str(image), str(target)], check=True)

    return mount


def hold_attached(task: Task) -> Check:
    """A file and the working directory; others unmount what they are on."""
    fd = os.open(task.path("file"), os.O_RDONLY)
    os.chdir(task.path("dir"))
    return lambda: [os.pread(fd, 100, 0).decode(), os.listdir(".")]


@pytest.mark.covers("file", column="sole-held", outcome="refused")
def test_fusermount(scenario: MakeScenario, tmp_path: Path) -> None:
    """A real one, unmounted as users do; its program lives on until the last file is closed."""
    serve_at = squashfuse(tmp_path)
    held = scenario(mount_source=serve_at, populate=lambda _: None).start(hold_attached)
    for point in (*held.ground.points(), held.ground.source):
        subprocess.run(["fusermount3", "-uz", str(point)], check=True)
    answer = held.ask()
    assert answer == [CONTENT, ["inner"]]
    held.dump().failed("is of type FUSE.*: mount it somewhere before the dump")
    assert held.ask() == answer
    name = str(look.open_files(held.pid)[3].mnt_id)
    held.dump(*beside_images(held, "external", name)).succeeded()
    served = tmp_path / "served"
    served.mkdir()
    serve_at(served)
    try:
        held.restore(*beside_images(held, "source", name, str(served))).succeeded()
        assert held.ask() == answer
    finally:
        held.kill()
        subprocess.run(["fusermount3", "-uz", str(served)], check=True)
