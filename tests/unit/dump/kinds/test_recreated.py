"""Deleted files that will be new ones: a second way to one of them is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from criu_detached import kernel
from criu_detached.dump.kinds import recreated
from criu_detached.dump.kinds.recreated import RecreatedFiles
from criu_detached.dump.observe.machine import Machine
from criu_detached.dump.observe.watches import watches_of
from criu_detached.errors import DetachedError
from criu_detached.images.records import File

from ... import support


def file(mnt_id: int, dev: int = 40, ino: int = 5) -> File:
    return File(mnt_id=mnt_id, dev=dev, ino=ino, path=b"dir/file")


def machine_of(*pids: int) -> Machine:
    machine = Machine()
    machine.tasks = list(pids)
    return machine


@pytest.mark.parametrize("other", [file(300), file(301, dev=41), file(301, ino=6)])
def test_another_file(other: File) -> None:
    """The same one by its own mount, and others."""
    noted = RecreatedFiles()
    noted.add(file(300))
    noted.add(other)
    left = kernel.fstat(0)  # a file that CRIU makes anew, another one
    noted.check(set(), [left], machine_of())


def test_second_mount() -> None:
    noted = RecreatedFiles()
    noted.add(file(300))
    with pytest.raises(DetachedError, match=r"dir/file is held on mount 300 and on mount 301"):
        noted.add(file(301))


@pytest.mark.parametrize("dev", [0, 77])
def test_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dev: int) -> None:
    """A watch tells the superblock, of which the file may tell another device (btrfs)."""
    (tmp_path / "file").touch()
    with support.inotify(tmp_path / "file"), support.opened(tmp_path / "file") as fd:
        facts = kernel.fstat(fd)
        [watch] = watches_of("self")
        monkeypatch.setattr(recreated, "watches_of_tasks", lambda _: iter([(os.getpid(), watch)]))
        noted = RecreatedFiles()
        if dev:
            noted.add(file(300, dev, facts.ino), kernel.superblock_dev(fd))
        else:
            noted.add(file(300, kernel.superblock_dev(fd), facts.ino))
    noted.check({(watch.dev, watch.ino)}, [], machine_of())
    with pytest.raises(DetachedError, match="watches the deleted file dir/file on mount 300"):
        noted.check(set(), [], machine_of())


@pytest.mark.parametrize("shown", [True, False])
def test_left_to_criu(tmp_path: Path, shown: bool) -> None:
    """CRIU has met it on an attached mount; who has it there is said where somebody shows it."""
    machine = machine_of(*[os.getpid()] * shown)
    (tmp_path / "file").touch()
    with support.opened(tmp_path / "file") as fd:
        facts = kernel.fstat(fd)
        noted = RecreatedFiles()
        noted.add(file(300, facts.dev, facts.ino))
        noted.check(set(), [], machine)
        how = rf"held by process {os.getpid()} \(fd/{fd}\)" if shown else r"in flight .*SCM_RIGHTS"
        with pytest.raises(DetachedError, match=rf"on mount 300 is {how}.* mount {facts.mnt_id} "):
            noted.check(set(), [facts], machine)
