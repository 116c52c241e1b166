"""What fails in the middle leaves a process that lives, or none, and a source as it was."""

from __future__ import annotations

import mmap
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from ..conftest import MakeScenario
from ..harness import kernel, look
from ..harness.agent import Check, Task
from ..harness.placement import CONTENT, Placement, populate_tree
from ..harness.scenario import Scenario


def populate_with_program(source: Path) -> None:
    """The common tree, and a program that runs for ever."""
    populate_tree(source)
    shutil.copy2("/usr/bin/sleep", source / "tree" / "program")


def hold_life(task: Task) -> Check:
    """A file, a mapping of another, a working directory, and a child's executable."""
    fd = os.open(task.path("file"), os.O_RDWR)
    other = os.open(task.path("other"), os.O_RDWR)
    mapping = mmap.mmap(other, 6)
    os.close(other)
    pid = os.posix_spawn(task.path("program"), ["program", "infinity"], {})
    while os.readlink(f"/proc/{pid}/exe") == os.readlink("/proc/self/exe"):
        os.sched_yield()
    os.chdir(task.path("dir"))
    task.detach()

    def check() -> list[str]:
        with open("inner") as inner:
            return [os.pread(fd, 100, 0).decode(), mapping[:].decode(), inner.read()]

    return check


ANSWER = [CONTENT, "other\n", "inner\n"]


def assert_lives(held: Scenario, before: look.Seen) -> None:
    """All that the process holds is as it was."""
    assert held.ask() == ANSWER
    assert look.seen(held.pid) == before


# --- A full disk ----------------------------------------------------------------------------------


@contextmanager
def small_disk(directory: Path, limit: str) -> Iterator[list[str]]:
    """A filesystem for the images with a limit; yields the options for criu."""
    directory.mkdir()
    kernel.mount("small", directory, "tmpfs", data=limit)
    yield ["--images-dir", str(directory)]
    kernel.umount2(directory)
    directory.rmdir()


def test_image_directory_full(scenario: MakeScenario) -> None:
    """Each dump gets a little further: first with more room, then with room for more files."""
    held = scenario(populate=populate_with_program).start(hold_life)
    before = look.seen(held.pid)
    held.dump("--leave-running").succeeded()
    sizes = [path.stat().st_blocks * 512 for path in held.images.glob("*.img")]
    # A later dump may have a few pages less.
    limits = [f"size={size}" for size in (4096, 32768, sum(sizes) // 2, sum(sizes) - 32768)]
    limits += [f"nr_inodes={inodes}" for inodes in range(3, len(sizes) + 1, 4)]
    refusals = ""
    for limit in limits:
        with small_disk(held.work / "small", limit) as options:
            run = held.dump(*options)
        assert run.status, f"{limit} is enough\n{run.report()}"
        refusals += "\n".join(run.errors())
        assert_lives(held, before)
    assert "No space left on device" in refusals
    if not held.ground.attached:
        assert "can't create criu-detached.img" in refusals
    held.cycle()
    assert held.ask() == ANSWER


# --- A source that changed ------------------------------------------------------------------------

Change = Callable[[Path], AbstractContextManager[None]]


@contextmanager
def truncated(path: Path) -> Iterator[None]:
    """The file is shorter."""
    content = path.read_bytes()
    os.truncate(path, 3)
    yield
    path.write_bytes(content)


@contextmanager
def extended(path: Path) -> Iterator[None]:
    """The file is longer."""
    size = path.stat().st_size
    os.truncate(path, size + 1)
    yield
    os.truncate(path, size)


@contextmanager
def forbidden(path: Path) -> Iterator[None]:
    """The permissions are others."""
    mode = path.stat().st_mode
    path.chmod(0o400)
    yield
    path.chmod(mode)


@contextmanager
def removed(path: Path) -> Iterator[None]:
    """The name is gone."""
    kept = path.rename(path.parent.with_name("kept"))
    yield
    kept.rename(path)


@contextmanager
def copied(path: Path) -> Iterator[None]:
    """Another file has the name, with the same content, mode and times."""
    with removed(path):
        kept = path.parent.with_name("kept")
        if kept.is_dir():
            shutil.copytree(kept, path)
        else:
            shutil.copy2(kept, path)
        yield
        if kept.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def other_type(
    make: Callable[[Path], None], unmake: Callable[[Path], None] = Path.unlink
) -> Change:
    """Something else has the name."""

    @contextmanager
    def change(path: Path) -> Iterator[None]:
        with removed(path):
            make(path)
            yield
            unmake(path)

    return change


directory = other_type(Path.mkdir, Path.rmdir)
fifo = other_type(os.mkfifo)
symlink = other_type(lambda path: path.symlink_to("../kept"))
regular = other_type(Path.touch)

CHANGES: list[tuple[str, Change, str]] = [
    ("file", truncated, "bad size 3 "),
    ("file", extended, "bad size 25 "),
    ("file", forbidden, "bad mode 0100400 "),
    ("other", removed, "No such file"),
    ("other", directory, "is a directory, it was a regular file"),
    ("other", fifo, "is a FIFO, it was a regular file"),
    ("other", symlink, "is a symlink, it was a regular file"),
    ("dir", forbidden, "bad mode 040400 "),
    ("dir", copied, "is another file"),
    ("dir", regular, "is a regular file, it was a directory"),
    ("dir", symlink, "is a symlink, it was a directory"),
    ("program", truncated, "bad size 3 "),
    ("program", copied, "is another file"),
]


def listing(source: Path) -> list[tuple[str, os.stat_result]]:
    """Every entry of the source with all that stat tells, save when it was read."""
    found = []
    for path in sorted(source.rglob("*")):
        facts = list(path.lstat())
        del facts[7]
        found.append((str(path), os.stat_result([*facts[:7], 0, *facts[7:]])))
    return found


@pytest.mark.detached
def test_source_changed(scenario: MakeScenario, placement: Placement) -> None:
    """The restore says what is not as it was, ends what it began, and leaves the source alone."""
    held = scenario(placement, populate=populate_with_program).start(hold_life)
    before = look.seen(held.pid)
    held.dump().succeeded()
    for name, change, pattern in CHANGES:
        with change(held.ground.source / "tree" / name):
            changed = listing(held.ground.source)
            held.restore().failed(pattern)
            held.assert_gone()
            assert listing(held.ground.source) == changed
    held.restore().succeeded()
    assert_lives(held, before)


@pytest.mark.detached
@pytest.mark.parametrize("change", [truncated, forbidden])
def test_changed_file_is_named(scenario: MakeScenario, change: Change) -> None:
    """Whoever reads the log can tell which file it was."""
    held = scenario(populate=populate_with_program).start(hold_life)
    held.dump().succeeded()
    with change(held.ground.source / "tree" / "file"):
        run = held.restore().failed("has bad (size|mode)")
        assert any("tree/file on mount" in line for line in run.warnings()), run.report()


# --- A killed criu --------------------------------------------------------------------------------


def at_image(name: str) -> list[str]:
    """Before criu: it is killed when it opens this image."""
    selected = ["--trace=openat", f"--trace-path={name}", "--inject=openat:signal=KILL"]
    return ["strace", "--output=/dev/null", *selected]


def at_action(held: Scenario, action: str) -> list[str]:
    """An option for criu: it is killed when it runs its scripts for this action."""
    script = held.work / "kill-criu"
    script.write_text(f'#!/bin/sh\n[ "$CRTOOLS_SCRIPT_ACTION" != {action} ] || kill -KILL $PPID\n')
    script.chmod(0o700)
    return ["--action-script", str(script)]


def test_dump_killed(scenario: MakeScenario, placement: Placement) -> None:
    """The process lives on and can be dumped, although the code that CRIU put into it is left."""
    held = scenario(placement, populate=populate_with_program).start(hold_life)
    before = look.seen(held.pid)
    names = ["files.img", "criu-detached.img", "pages-1.img", "inventory.img"]
    if held.ground.attached:
        names.remove("criu-detached.img")
    for name in names:
        assert held.dump(prefix=at_image(name)).status < 0, name
        assert_lives(held, before)
    assert held.dump(*at_action(held, "post-dump")).status < 0
    assert_lives(held, before)
    held.cycle()
    assert held.ask() == ANSWER


def test_restore_killed(scenario: MakeScenario, placement: Placement) -> None:
    """CRIU leaves tasks that wait for it for ever; once they are killed, a restore works."""
    held = scenario(placement, populate=populate_with_program).start(hold_life)
    before = look.seen(held.pid)
    pid = held.pid
    held.dump().succeeded()
    clean = listing(held.ground.source)
    # The tasks that are left would keep the output open which the test reads to its end.
    quietly = ["sh", "-c", 'exec "$@" >/dev/null 2>&1', "quietly"]
    for action in ("post-restore", "pre-resume"):
        options = at_action(held, action)
        assert held.restore(*options, prefix=quietly).status < 0, action
        held.kill()
        held.pid = pid
        assert listing(held.ground.source) == clean
    held.restore().succeeded()
    assert_lives(held, before)
