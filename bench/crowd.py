"""What a busy machine costs: dumps among many processes, fds and mount namespaces.

The base of a dump that has to look at all processes is one bare walk over them in C (walk.c), and
the same dump without the crowd. All are measured in turn in one run, by processor time, which
what else the machine does disturbs least, and by the clock. Then the cases that must be linear, by
three sizes each. A bound is broken when both the median and the least are beyond it.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.integration.harness import kernel
from tests.integration.harness.criu import default_plugins, has_plugin
from tests.integration.harness.scenario import prepare_runner

FDS = 100  # of each process of the crowd
MOUNTS = 40  # of each mount namespace
CROWDS = [(500, 0), (2000, 0), (0, 200), (2000, 200)]  # processes, and mount namespaces
ROUNDS = 5
BROKEN = "**broken**"

WALKS = 2.0  # bare walks that a dump may take which has to look at all
BESIDE_WALK = 1.2  # times a dump without a crowd that it may take besides
UNCONCERNED = 1.1  # times that any other dump may take
GROWTH = 1.3  # times that four times as much may take more than four times as long
MEMORY = 64.0  # MiB that the largest size may take more than the smallest

# --- What is dumped ---------------------------------------------------------------------------

START = """
import ctypes, os, resource, signal, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
top, count = sys.argv[1], int(sys.argv[2])
kept = []

def be_quiet():
    null = os.open("/dev/null", os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    os.close(null)
"""
END = """
print(flush=True)
be_quiet()
while True:
    signal.pause()
"""
FILE = "kept.append(os.open(top + '/file', os.O_RDWR))"
IN_CHILDREN = """
ready = os.pipe()
for number in range(1, count):
    if not os.fork():
        be_quiet()
        os.close(ready[0])
        {}
        os.close(ready[1])
        while True:
            signal.pause()
os.close(ready[1])
os.read(ready[0], 1)
os.close(ready[0])
number = 0
{}
"""
PROGRAMS = {
    "sole-held tmpfs": FILE,
    "detached bind mount": FILE,
    "anonymous mount": FILE
    + "; kept.append(libc.syscall(428, -100, top.encode(), 1 | os.O_CLOEXEC))",
    "deleted file": FILE + "; os.unlink(top + '/file')",
    "bound socket": "s = socket.socket(1); s.bind(top + '/socket')",
    "watch": FILE + "; n = libc.inotify_init1(0); libc.inotify_add_watch(n, top.encode(), 2)",
}


@contextmanager
def mounted(directory: Path, sole: bool) -> Iterator[Path]:
    """A tmpfs with a file, or a bind mount of it; it is for the process to be unmounted."""
    source, point = directory / "source", directory / "point"
    for path in (source, point):
        path.mkdir()
    kernel.mount("bench", source, "tmpfs")
    (source / "file").write_text("content")
    kernel.bind(source, point)
    try:
        if sole:
            kernel.umount2(source, kernel.MNT_DETACH)
        yield point
    finally:
        if not sole:
            kernel.umount2(source, kernel.MNT_DETACH)


@contextmanager
def process(code: str, *arguments: str | Path | int) -> Iterator[int]:
    """A process that has done something, and waits."""
    command = [sys.executable, "-c", START + code + END, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as running:
        assert running.stdout is not None and running.stdout.readline()
        try:
            yield running.pid
        finally:
            os.killpg(running.pid, signal.SIGKILL)


# --- The crowd --------------------------------------------------------------------------------

CROWD = """
fds = [os.open("/dev/null", 0) for _ in range(int(sys.argv[3]))]
for _ in range(count):
    if not os.fork():
        while True:
            signal.pause()
for _ in range(int(sys.argv[4])):
    ready = os.pipe()
    if not os.fork():
        assert not libc.unshare(0x20000)
        for _ in range(int(sys.argv[5]) - len(open("/proc/self/mountinfo").readlines())):
            assert not libc.mount(b"crowd", top.encode(), b"tmpfs", 0, None)
        os.close(ready[1])
        while True:
            signal.pause()
    os.close(ready[1])
    os.read(ready[0], 1)
    os.close(ready[0])
"""


@contextmanager
def crowd(directory: Path, processes: int, namespaces: int) -> Iterator[None]:
    """Idle processes with open files, and mount namespaces with a process in each."""
    with process(CROWD, directory, processes, FDS - 3, namespaces, MOUNTS):
        yield


# --- Measuring --------------------------------------------------------------------------------


@dataclass
class Sample:
    """Milliseconds of processor time and by the clock, and MiB, one of each a round."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    peak: list[float] = field(default_factory=list)

    def run(self, *command: str | Path) -> None:
        """Measure a command, which has to work."""
        started = time.monotonic()
        with subprocess.Popen(
            list(map(str, command)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as running:
            _, status, used = os.wait4(running.pid, 0)
            running.returncode = os.waitstatus_to_exitcode(status)
        assert running.returncode == 0, command
        self.wall.append((time.monotonic() - started) * 1000)
        self.cpu.append((used.ru_utime + used.ru_stime) * 1000)
        self.peak.append(used.ru_maxrss / 1024)

    def of(self, what: str) -> tuple[float, float]:
        """The median, and the least."""
        found = getattr(self, what)
        return statistics.median(found), min(found)


def dump(sample: Sample, pid: int, directory: Path) -> None:
    """One dump of a process, which goes on."""
    with tempfile.TemporaryDirectory(dir=directory) as images:
        criu = ["criu", "dump", "--tree", str(pid), "--leave-running", "--images-dir", images]
        criu += ["--manage-cgroups=ignore", "--lib", str(default_plugins())]
        sample.run(*criu, "--log-file", str(directory / "log"))


@dataclass
class Table:
    """Lines of a table, of which some are beyond their bounds."""

    broken: int = 0

    def head(self, *cells: str) -> None:
        """Print its head."""
        print(f"\n| {' | '.join(cells)} |\n{'|---' * len(cells)}|")

    def row(self, *cells: str, kept: bool) -> None:
        """Print a line."""
        self.broken += not kept
        print(f"| {' | '.join(cells)} | {'' if kept else BROKEN} |", flush=True)


def in_crowds(table: Table, directory: Path, walk: Path, rounds: int) -> None:
    """Dumps in each crowd, and without."""
    table.head(
        "crowd", "dump of a", "time", "without, ms", "within, ms", "bare walk, ms", "bound", ""
    )
    alone = {name: Sample() for name in PROGRAMS}
    for processes, namespaces in CROWDS:
        for name, sample in alone.items():  # in turn with the crowds
            measure(directory, name, rounds, sample)
        with crowd(directory, processes, namespaces):
            walked = Sample()
            for _ in range(rounds):
                walked.run(walk)
            for name in PROGRAMS:
                found = measure(directory, name, rounds, Sample())
                for what in ("cpu", "wall"):
                    compare(
                        table,
                        f"{processes} processes, {namespaces} namespaces",
                        name,
                        what,
                        [alone[name], found, walked],
                    )


def measure(directory: Path, name: str, rounds: int, sample: Sample) -> Sample:
    """Some dumps of one process."""
    is_sole = name == "sole-held tmpfs"
    with (
        tempfile.TemporaryDirectory(dir=directory) as work,
        mounted(Path(work), is_sole) as point,
        process(f"{PROGRAMS[name]}; assert not libc.umount2(top.encode(), 2)", point, 1) as pid,
    ):
        dump(Sample(), pid, Path(work))  # warms the caches
        for _ in range(rounds):
            dump(sample, pid, Path(work))
    return sample


def compare(table: Table, where: str, name: str, what: str, samples: Sequence[Sample]) -> None:
    """Hold a dump in a crowd against the same without, and against a bare walk."""
    pairs = list(zip(*(sample.of(what) for sample in samples), strict=True))
    if name == "sole-held tmpfs":
        bounds = [BESIDE_WALK * base + WALKS * walk for base, _, walk in pairs]
        said = f"{BESIDE_WALK:g} times, and {WALKS:g} walks"
    else:
        bounds = [UNCONCERNED * base for base, _, _ in pairs]
        said = f"{UNCONCERNED:g} times"
    kept = any(found <= bound for (_, found, _), bound in zip(pairs, bounds, strict=True))
    base, found, walk = pairs[0]
    cells = (where, name, what, f"{base:.1f}", f"{found:.1f}", f"{walk:.1f}", said)
    table.row(*cells, kept=kept)


# --- What must be linear ----------------------------------------------------------------------

MANY_MOUNTS = "for n in range(count): kept.append(os.open(f'{top}/{n}/file', os.O_RDWR))"
ONE_EACH = IN_CHILDREN.format(*["kept.append(os.open(f'{top}/{number}/file', os.O_RDWR))"] * 2)
ONE_MOUNT = IN_CHILDREN.format(*["kept.append(os.open(f'{top}/0/file', os.O_RDWR))"] * 2)
DIRECTORY = "kept.append(os.open(f'{top}/0', os.O_RDONLY))"


@dataclass(frozen=True)
class Linear:
    """A case by its sizes: so many mounts, and files in each."""

    name: str
    program: str
    sizes: tuple[int, int, int]
    mounts: bool = True  # as many; else one
    files: bool = False  # as many, in a directory that is held
    sole: bool = True


LINEAR = (
    Linear("sole-held tmpfs in one process", MANY_MOUNTS, (125, 250, 500)),
    Linear("processes with a sole-held tmpfs each", ONE_EACH, (125, 250, 500)),
    Linear("detached mounts", MANY_MOUNTS, (1250, 2500, 5000), sole=False),
    Linear("files on a sole-held tmpfs", DIRECTORY, (25000, 50000, 100000), False, True),
    Linear("processes on one detached mount", ONE_MOUNT, (1250, 2500, 5000), False, sole=False),
)


def by_sizes(table: Table, directory: Path, rounds: int) -> None:
    """Each case by its three sizes."""
    table.head("case", "size", "cpu, ms", "wall, ms", "peak, MiB", "times the least size", "")
    for case in LINEAR:
        first: Sample | None = None
        for size in case.sizes:
            sample = measure_size(directory, case, size, rounds)
            first = first or sample
            times = sample.of("cpu")[1] / first.of("cpu")[1]
            more = sample.of("peak")[0] - first.of("peak")[0]
            kept = times <= GROWTH * size / case.sizes[0] and more <= MEMORY
            cells = [f"{sample.of(what)[0]:.1f}" for what in ("cpu", "wall", "peak")]
            table.row(case.name, str(size), *cells, f"{times:.2f}", kept=kept)


def measure_size(directory: Path, case: Linear, size: int, rounds: int) -> Sample:
    """Some dumps of one size."""
    sample = Sample()
    with tempfile.TemporaryDirectory(dir=directory) as work:
        points = [Path(work, str(number)) for number in range(size if case.mounts else 1)]
        with sources(Path(work), points, case, size):
            unmount = f"\nfor n in range({len(points)}): libc.umount2(f'{{top}}/{{n}}'.encode(), 2)"
            with process(case.program + unmount, work, size) as pid:
                for _ in range(rounds):
                    dump(sample, pid, Path(work))
    return sample


@contextmanager
def sources(work: Path, points: list[Path], case: Linear, size: int) -> Iterator[None]:
    """What is mounted at the points: a tmpfs at each, or bind mounts of one."""
    source = work / "source"
    source.mkdir()
    kernel.mount("bench", source, "tmpfs", 0, "nr_inodes=0,size=4g")
    (source / "file").write_text("content")
    for point in points:
        point.mkdir()
        if case.sole:
            kernel.mount("bench", point, "tmpfs", 0, "nr_inodes=0")
            (point / "file").write_text("content")
            for number in range(size if case.files else 0):
                (point / str(number)).touch()
        else:
            kernel.bind(source, point)
    try:
        yield
    finally:
        kernel.umount2(source, kernel.MNT_DETACH)


def main() -> int:
    """Measure all, and print the tables."""
    parser = argparse.ArgumentParser(description="measure dumps on a busy machine")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only", choices=["crowds", "sizes"])
    given = parser.parse_args()
    if os.geteuid() or not has_plugin():
        print("The benchmark needs root and the plugin (make plugin).", file=sys.stderr)
        return 1
    prepare_runner()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    table = Table()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        walk = directory / "walk"
        source = Path(__file__).with_name("walk.c")
        subprocess.run(["cc", "-O2", "-o", str(walk), str(source)], check=True)
        if given.only != "sizes":
            in_crowds(table, directory, walk, given.rounds)
        if given.only != "crowds":
            by_sizes(table, directory, max(1, given.rounds // 2))
    print(f"\nBounds that are broken: {table.broken}; load after: {os.getloadavg()[0]:.1f}")
    return 1 if table.broken else 0


if __name__ == "__main__":
    sys.exit(main())
