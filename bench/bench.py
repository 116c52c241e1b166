"""What the plugin costs: paired runs of criu with it and of a base, as markdown tables.

The base is criu without the plugin and with the files attached; where the content of a file has to
be in the images, it is cp of that file, and of a whole filesystem it is tar. The two sides of a
pair run right after each other, in turn first, so that what else the machine does meets both.
Two ratios are told: the median of the pairs', and that of the shortest times, which other work on
the machine disturbed least. A bound is broken when both are beyond it; then the exit status is 1.
"""

from __future__ import annotations

import argparse
import gc
import mmap
import os
import platform
import re
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.integration.harness import kernel
from tests.integration.harness.agent import Check, Task
from tests.integration.harness.criu import has_plugin
from tests.integration.harness.placement import mount_tmpfs, populate_tree
from tests.integration.harness.program import Program
from tests.integration.harness.scenario import Scenario, prepare_runner

DISK = Path(__file__).resolve().parents[1] / ".cache"  # /tmp is in memory in the test ground
MIB, GIB = 1 << 20, 1 << 30
SETTINGS = "criu-detached.conf"  # in the image directory
UNTRACKED: dict[str, Any] = {"trackfd": False}  # Python 3.13: a mapping keeps no fd

# --- What is held -------------------------------------------------------------------------


@dataclass(frozen=True)
class Held:
    """A program with its arguments, and the files that it finds on its mount."""

    program: Program
    arguments: dict[str, int]
    populate: Callable[[Path], None]


def hold_files(task: Task, processes: int, files: int) -> Check:
    """Distinct files on the mount: in this process, or in each of several children."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    def hold(share: int) -> None:
        for number in range(share * files, (share + 1) * files):
            os.open(task.path(f"many/{number}"), os.O_RDONLY)

    ready_read, ready_write = os.pipe()
    for child in range(1, processes):
        if not os.fork():
            os.close(ready_read)
            hold(child)
            os.close(ready_write)
            while True:
                signal.pause()
    os.close(ready_write)
    os.read(ready_read, 1)  # ends when every child has closed its end
    os.close(ready_read)
    hold(0)
    task.detach()
    return lambda: None


def files(processes: int, count: int) -> Held:
    """Each of the processes has so many files open."""
    return Held(
        hold_files,
        {"processes": processes, "files": count},
        lambda tree: touch_many(tree, processes * count),
    )


def touch_many(tree: Path, count: int) -> None:
    """Files that are numbered, with a page of content that can be mapped."""
    (tree / "many").mkdir()
    for number in range(count):
        (tree / "many" / str(number)).write_bytes(b"content")


def hold_mappings(task: Task, count: int) -> Check:
    """Distinct files that are mapped and not open."""
    mappings = []
    for number in range(count):
        fd = os.open(task.path(f"many/{number}"), os.O_RDWR)
        mappings.append(mmap.mmap(fd, 7, **UNTRACKED))
        os.close(fd)
    task.detach()
    return lambda: sum(mapping[:] == b"content" for mapping in mappings)


def mappings(count: int) -> Held:
    """One process has so many mappings."""
    return Held(hold_mappings, {"count": count}, lambda tree: touch_many(tree, count))


def hold_deleted(task: Task) -> Check:
    """A file that has no name any more."""
    fd = os.open(task.path(LARGE), os.O_RDWR)
    os.unlink(task.path(LARGE))
    task.detach()
    return lambda: os.fstat(fd).st_nlink


LARGE = "large"


def deleted(size: int, data: int) -> Held:
    """A deleted file, with its data spread over it in pieces of a mebibyte."""
    return Held(hold_deleted, {}, lambda tree: write_large(tree / LARGE, size, data))


def write_large(path: Path, size: int, data: int) -> None:
    """A file whose pieces of data lie at equal distances."""
    piece = os.urandom(MIB)
    with path.open("wb") as file:
        for number in range(data // MIB):
            file.seek(number * (size // (data // MIB)))
            file.write(piece)
        file.truncate(size)


def hold_tree(task: Task) -> Check:
    """A directory of a filesystem, and with it everything in it."""
    fd = os.open(task.path(), os.O_RDONLY)
    task.detach()
    return lambda: len(os.listdir(fd))


def tree(size: int, count: int) -> Held:
    """A directory with so many files, a hundred to a directory, of so many bytes in all."""
    return Held(hold_tree, {}, lambda tree: write_files(tree, size // count, count))


def write_files(tree: Path, size: int, count: int) -> None:
    """Files of one size."""
    piece = os.urandom(min(size, MIB))
    for number in range(count):
        directory = tree / str(number // 100)
        directory.mkdir(exist_ok=True)
        with (directory / str(number)).open("wb") as file:
            for at in range(0, size, len(piece)):
                file.write(piece[: size - at])


# --- The two sides of a pair --------------------------------------------------------------


@dataclass
class Sample:
    """What was measured on one side: milliseconds and KiB, one of each a round."""

    dump: list[float] = field(default_factory=list)
    restore: list[float] = field(default_factory=list)
    dump_peak: list[float] = field(default_factory=list)
    restore_peak: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Ground:
    """Where a round has its files: a directory on the disk, and the helper that measures memory."""

    directory: Path
    peak: Path

    @property
    def prefix(self) -> list[str]:
        """What a command is run under."""
        return [str(self.peak), str(self._kib)]

    def used(self) -> int:
        """The peak memory of the last command, in KiB."""
        return int(self._kib.read_text())

    @property
    def _kib(self) -> Path:
        return self.peak.with_name("kib")

    def run(self, *command: str | Path) -> float:
        """The milliseconds that a command takes."""
        started = time.monotonic()
        subprocess.run([*self.prefix, *command], check=True)
        return (time.monotonic() - started) * 1000


@dataclass(frozen=True)
class Criu:
    """criu dumps and restores a process that holds the files."""

    attached: bool
    plugin: bool

    def measure(self, case: Case, ground: Ground, sample: Sample) -> None:
        """One dump and restore of a fresh process."""

        def populate(source: Path) -> None:
            populate_tree(source)
            case.held.populate(source / "tree")

        def mount_source(source: Path) -> None:
            if case.on_disk:
                kernel.bind(make(ground.directory / "source"), source)
            else:
                mount_tmpfs(source)

        made = Scenario(attached=self.attached, mount_source=mount_source, populate=populate)
        with made as held:
            if case.on_disk or case.sole:
                held.images = ground.directory / "images"
            if case.settings:
                (make(held.images) / SETTINGS).write_text(case.settings)
            held.start(case.held.program, **case.held.arguments)
            if case.sole:
                kernel.umount2(held.ground.source, kernel.MNT_DETACH)
            gc.collect()
            for verb, times, peaks in (
                (held.dump, sample.dump, sample.dump_peak),
                (held.restore, sample.restore, sample.restore_peak),
            ):
                case.settle()
                run = verb(plugin=self.plugin, prefix=ground.prefix, verbosity=2).succeeded()
                times.append(run.seconds * 1000)
                peaks.append(ground.used())


@dataclass(frozen=True)
class Copy:
    """cp copies the large file to where the images would be, and back.

    A dump ends the process and with it the deleted file, which takes a filesystem its time: so rm
    belongs to that side of the base.
    """

    def measure(self, case: Case, ground: Ground, sample: Sample) -> None:
        """One copy in each direction; a reflink would copy nothing."""
        source, images = make(ground.directory / "source"), make(ground.directory / "images")
        case.held.populate(source)
        file, image = source / LARGE, images / LARGE
        copy = 'cp --reflink=never "$0" "$1"'
        for script, old, new, times, peaks in (
            (f'{copy} && rm "$0"', file, image, sample.dump, sample.dump_peak),
            (copy, image, file, sample.restore, sample.restore_peak),
        ):
            case.settle()
            times.append(ground.run("sh", "-c", script, old, new))
            peaks.append(ground.used())


@dataclass(frozen=True)
class Tar:
    """tar writes the tree to where the images would be, and reads it into a fresh filesystem.

    A dump ends the process and with it the filesystem, which takes its time: so umount belongs to
    that side of the base.
    """

    def measure(self, case: Case, ground: Ground, sample: Sample) -> None:
        """One archive made and taken apart, with all that a dump saves of a file."""
        source, images = make(ground.directory / "source"), make(ground.directory / "images")
        options = "--xattrs --xattrs-include='*' --acls --selinux --numeric-owner --sparse"
        tar = f'tar {options} -C "$0" -f "$1"/tree.tar'
        mount_tmpfs(source)
        case.held.populate(source)
        case.settle()
        sample.dump.append(ground.run("sh", "-c", f'{tar} -c . && umount "$0"', source, images))
        sample.dump_peak.append(ground.used())
        mount_tmpfs(source)
        case.settle()
        sample.restore.append(ground.run("sh", "-c", f"{tar} -x", source, images))
        sample.restore_peak.append(ground.used())
        kernel.umount2(source)


def make(directory: Path) -> Path:
    """A new directory."""
    directory.mkdir()
    return directory


@dataclass(frozen=True)
class Bound:
    """How much longer than the base the plugin may take: so many times, or milliseconds."""

    ratio: float = 0.0
    more: float = 0.0

    def allows(self, base: float, other: float, ratio: float) -> bool:
        """Whether a time is within it."""
        return ratio <= self.ratio if self.ratio else other - base <= self.more

    def __str__(self) -> str:
        return f"{self.ratio:g} times" if self.ratio else f"{self.more:+g} ms"


@dataclass(frozen=True)
class Case:
    """What is held, the two sides that are compared, how often, and what they are held to."""

    name: str
    held: Held
    base: Criu | Copy | Tar
    other: Criu
    rounds: int
    on_disk: bool = False
    sole: bool = False  # the files are in memory, shown by nobody else, and the images on the disk
    settings: str = ""  # of the plugin
    dump: Bound | None = None
    restore: Bound | None = None
    both: Bound | None = None
    peak: float = 0.0  # MiB that criu may use with the plugin

    def settle(self) -> None:
        """Have what was written before on the disk, so that nothing waits for it."""
        if self.on_disk or self.sole:
            os.sync()


NOTHING = Criu(attached=True, plugin=False)
LOADED = Criu(attached=True, plugin=True)
DETACHED = Criu(attached=False, plugin=True)


def against(bound: Bound, **more: Any) -> dict[str, Any]:
    """A bound for each direction."""
    return {"dump": bound, "restore": bound, **more}


def large(name: str, data: int, bound: Bound) -> Case:
    """A deleted file of 1 GiB on the disk, against cp."""
    held, settings = deleted(size=GIB, data=data), "ghost-limit 2G\n"
    given = against(bound, settings=settings, peak=LARGE_PEAK)
    return Case(name, held, Copy(), DETACHED, 7, on_disk=True, **given)


def in_images(name: str, count: int) -> Case:
    """A tmpfs of 1 GiB that goes through the images, against tar."""
    given = against(Bound(ratio=1.25), peak=LARGE_PEAK)  # 0.8 of its throughput
    return Case(name, tree(GIB, count), Tar(), DETACHED, 7, sole=True, **given)


LARGE_PEAK = 84  # 64 more than with one detached file

ONE, LITTLE, MUCH = against(Bound(more=25), peak=32), Bound(ratio=1.5), Bound(ratio=2)

CASES = (
    Case(
        "plugin loaded, nothing detached",
        files(1, 1),
        NOTHING,
        LOADED,
        300,
        **against(Bound(ratio=1.02)),
    ),
    Case("one detached file", files(1, 1), NOTHING, DETACHED, 50, **ONE),
    Case("1,000 detached files", files(1, 1000), NOTHING, DETACHED, 20),
    Case(
        "10,000 detached files",
        files(1, 10000),
        NOTHING,
        DETACHED,
        7,
        dump=LITTLE,
        restore=MUCH,
    ),
    Case(
        "100 processes with 100 detached files each",
        files(100, 100),
        NOTHING,
        DETACHED,
        5,
        dump=LITTLE,
        restore=MUCH,
    ),
    Case(
        "1,000 mappings of a detached mount",
        mappings(1000),
        NOTHING,
        DETACHED,
        40,
        dump=LITTLE,
        restore=Bound(ratio=1.75),
        both=LITTLE,
    ),
    large("deleted file of 1 GiB, and cp", GIB, Bound(ratio=1.43)),  # 0.7 of its speed
    large("deleted file of 1 GiB with 16 MiB of data, and cp", 16 * MIB, Bound(more=100)),
    in_images("tmpfs of 1 GiB in one file, and tar", 1),
    in_images("tmpfs of 1 GiB in 10,000 files, and tar", 10000),
)


def measure(case: Case, rounds: int, peak: Path, disk: Path) -> tuple[Sample, Sample]:
    """Measure both sides of a case in turn."""
    base, other = Sample(), Sample()
    sides = [(case.base, base), (case.other, other)]
    for number in range(rounds + 1):
        for side, sample in sides if number % 2 else reversed(sides):
            # The first round warms the caches.
            into = sample if number else Sample()
            with tempfile.TemporaryDirectory(prefix="bench.", dir=disk) as directory:
                side.measure(case, Ground(Path(directory), peak), into)
    return base, other


# --- The tables ---------------------------------------------------------------------------


TIMES: dict[str, Callable[[Sample], list[float]]] = {
    "dump": lambda sample: sample.dump,
    "restore": lambda sample: sample.restore,
    "both": lambda sample: [sum(pair) for pair in zip(sample.dump, sample.restore, strict=True)],
}
PEAKS: dict[str, Callable[[Sample], list[float]]] = {
    "dump": lambda sample: sample.dump_peak,
    "restore": lambda sample: sample.restore_peak,
}
BROKEN = "**broken**"
HEADINGS = (
    "case",
    "what",
    "base, ms",
    "plugin, ms",
    "difference",
    "median ratio",
    "half the ratios",
    "base, least",
    "plugin, least",
    "ratio of the least",
    "bound",
)


def row(case: Case, what: str, old: list[float], new: list[float]) -> str:
    """One line of the table: medians, their difference, both ratios, how far rounds differ."""
    base, other = statistics.median(old), statistics.median(new)
    ratios = [plugin / without for without, plugin in zip(old, new, strict=True)]
    middle, least = statistics.median(ratios), min(new) / min(old)
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [middle] * 3
    bound: Bound | None = getattr(case, what, None)
    kept = bound is None or (
        bound.allows(base, other, middle) or bound.allows(min(old), min(new), least)
    )
    cells = (
        case.name,
        what,
        f"{base:.1f}",
        f"{other:.1f}",
        f"{other - base:+.1f}",
        f"{middle:.3f}",
        f"{low:.3f} to {high:.3f}",
        f"{min(old):.1f}",
        f"{min(new):.1f}",
        f"{least:.3f}",
        f"{bound or ''}{'' if kept else ' ' + BROKEN}",
    )
    return f"| {' | '.join(cells)} |"


def memory_row(case: Case, what: str, base: list[float], other: list[float]) -> str:
    """One line of the second table: medians of the peak memory."""
    old, new = statistics.median(base) / 1024, statistics.median(other) / 1024
    kept = not case.peak or new <= case.peak
    bound = f"{case.peak:g} MiB" if case.peak else ""
    cells = (
        case.name,
        what,
        f"{old:.1f}",
        f"{new:.1f}",
        f"{new - old:+.1f}",
        f"{bound}{'' if kept else ' ' + BROKEN}",
    )
    return f"| {' | '.join(cells)} |"


def machine() -> str:
    """What the figures hold for."""
    cpu = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    version = subprocess.run(["criu", "--version"], check=True, capture_output=True, text=True)
    criu = re.search(r"Version: (\S+)", version.stdout)
    return (
        f"{os.cpu_count()} x {cpu.group(1) if cpu else platform.machine()}, "
        f"Linux {platform.release()}, CRIU {criu.group(1) if criu else 'unknown'}, "
        f"Python {platform.python_version()}"
    )


def build_peak(directory: Path) -> Path:
    """The helper that measures memory."""
    peak = directory / "peak"
    source = Path(__file__).with_name("peak.c")
    subprocess.run(["cc", "-O2", "-o", str(peak), str(source)], check=True)
    return peak


def main() -> int:
    """Measure all cases and print both tables."""
    parser = argparse.ArgumentParser(description="measure what the plugin costs criu")
    parser.add_argument("--scale", type=float, default=1.0, help="how many rounds: 0.1 is quick")
    parser.add_argument("--case", default="", help="only cases whose name contains this")
    parser.add_argument("--disk", type=Path, default=DISK, help="a directory for large files")
    given = parser.parse_args()
    if os.geteuid() or not has_plugin():
        print("The benchmark needs root and the plugin (make plugin).", file=sys.stderr)
        return 1
    given.disk.mkdir(exist_ok=True)
    prepare_runner()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    times, memory = [], []
    print(f"Machine: {machine()}; load before: {os.getloadavg()[0]:.1f}\n")
    print(f"| {' | '.join(HEADINGS)} |\n{'|---' * len(HEADINGS)}|")
    with tempfile.TemporaryDirectory() as directory:
        peak = build_peak(Path(directory))
        for case in CASES:
            if given.case not in case.name:
                continue
            base, other = measure(case, max(1, round(case.rounds * given.scale)), peak, given.disk)
            for what, pick in TIMES.items():
                times.append(row(case, what, pick(base), pick(other)))
                print(times[-1], flush=True)
            for what, pick in PEAKS.items():
                memory.append(memory_row(case, what, pick(base), pick(other)))
    print("\nPeak memory:\n")
    print("| case | what | base, MiB | plugin, MiB | difference | bound |")
    print("|---|---|---|---|---|---|")
    print("\n".join(memory))
    broken = [line for line in times + memory if BROKEN in line]
    print(f"\nBounds that are broken: {len(broken)}; load after: {os.getloadavg()[0]:.1f}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
