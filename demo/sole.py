"""A process that alone holds a filesystem in memory: it moves through the images."""

from __future__ import annotations

import hashlib
import mmap
import os
from pathlib import Path

from demo.telling import detached_files, note, step, table
from tests.integration.harness import kernel
from tests.integration.harness.agent import Check, Task
from tests.integration.harness.placement import SUBDIRECTORY, Bind
from tests.integration.harness.scenario import Scenario

FILES = 200
SIZE = 64 << 10  # bytes of a file


def make_folder(source: Path) -> None:
    """What is bound: an empty directory."""
    (source / "tree").mkdir()


def keep_files(task: Task, files: int, size: int) -> Check:
    """What the demonstrated process does: it writes files, maps one, and deletes some."""
    folder = os.open(task.path(), os.O_RDONLY)
    kept = []
    for number in range(files):
        fd = os.open(f"{number}", os.O_RDWR | os.O_CREAT, dir_fd=folder)
        os.write(fd, os.urandom(size))
        if number < 3:
            kept.append(fd)
        else:
            os.close(fd)
    mapped = mmap.mmap(kept[1], size)
    os.unlink("2", dir_fd=folder)
    task.detach()

    def checksums() -> dict[str, str]:
        mapped[:4] = bytes(reversed(mapped[:4]))  # and the file changes with it
        found = {}
        for name in sorted(os.listdir(folder)):
            with open(name, "rb", opener=lambda *how: os.open(*how, dir_fd=folder)) as file:
                found[name] = hashlib.sha256(file.read()).hexdigest()
        found["mapped"] = hashlib.sha256(mapped[:]).hexdigest()
        found["deleted"] = hashlib.sha256(os.pread(kept[2], size, 0)).hexdigest()
        return found

    return checksums


def demonstrate() -> None:
    """The steps, each with what is seen of it."""
    with Scenario(binds=[Bind(SUBDIRECTORY)], populate=make_folder) as held:
        held.start(keep_files, files=FILES, size=SIZE)
        kernel.umount2(held.ground.source, kernel.MNT_DETACH)
        held.ask()
        before, checksums = detached_files(held.pid), held.ask()
        assert checksums["mapped"] == checksums["1"], "the mapping is not of the file"
        step(f"Process {held.pid} has written {FILES} files to a tmpfs, mapped one, deleted one.")
        note("That tmpfs is unmounted everywhere: it lives through this process alone.")

        dump = held.dump().succeeded()
        held.assert_gone()
        size = sum(path.stat().st_size for path in held.images.glob("criu-detached*"))
        step(f"Dumped in {dump.seconds * 1000:.0f} ms. The process is gone, and so is the tmpfs;")
        note(f"its files are in the images now, {size >> 20} MiB.")

        restore = held.restore().succeeded()
        step(f"Restored in {restore.seconds * 1000:.0f} ms, on a new tmpfs.")
        table(before, detached_files(held.pid))

        held.ask()
        expect_same(checksums, held.ask())
        step(f"The checksums of all {len(checksums)} files, mappings and deleted files are equal.")
        held.kill()


def expect_same(before: dict[str, str], after: dict[str, str]) -> None:
    """Compare two sets of checksums."""
    changed = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
    assert not changed, f"these changed: {changed}"
