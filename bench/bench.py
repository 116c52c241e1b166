"""What the plugin costs: paired runs of criu with and without it, as a markdown table.

The two sides of a pair run right after each other, in turn first, so that what else the
machine does meets both; medians are compared.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import re
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.integration.harness.agent import Check, Task
from tests.integration.harness.criu import has_plugin
from tests.integration.harness.placement import populate_tree
from tests.integration.harness.scenario import Scenario, prepare_runner


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


@dataclass(frozen=True)
class Side:
    """One side of a pair."""

    attached: bool
    plugin: bool


@dataclass
class Sample:
    """What was measured on one side: milliseconds and KiB, one of each a round."""

    dump: list[float] = field(default_factory=list)
    restore: list[float] = field(default_factory=list)
    dump_peak: list[float] = field(default_factory=list)
    restore_peak: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Case:
    """A pair, what is held in it, and how often it is measured."""

    name: str
    base: Side
    other: Side
    processes: int
    files: int
    rounds: int


NOTHING = Side(attached=True, plugin=False)
LOADED = Side(attached=True, plugin=True)
DETACHED = Side(attached=False, plugin=True)

CASES = (
    Case("plugin loaded, nothing detached", NOTHING, LOADED, 1, 1, 300),
    Case("one detached file", NOTHING, DETACHED, 1, 1, 30),
    Case("1,000 detached files", NOTHING, DETACHED, 1, 1000, 10),
    Case("10,000 detached files", NOTHING, DETACHED, 1, 10000, 5),
    Case("100 processes with 100 detached files each", NOTHING, DETACHED, 100, 100, 5),
)


class Bench:
    """Runs cases; owns the helper that measures memory."""

    def __init__(self, directory: Path) -> None:
        self._peak = directory / "peak"
        self._peak_file = directory / "kib"
        source = Path(__file__).with_name("peak.c")
        subprocess.run(["cc", "-O2", "-o", str(self._peak), str(source)], check=True)

    def measure(self, case: Case, rounds: int) -> tuple[Sample, Sample]:
        """Measure both sides of a case in turn."""
        sides = {case.base: Sample(), case.other: Sample()}
        for number in range(rounds + 1):
            order = list(sides) if number % 2 else list(reversed(sides))
            for side in order:
                into = sides[side] if number else Sample()  # the first round warms the caches
                self._once(case, side, into)
        return sides[case.base], sides[case.other]

    def _once(self, case: Case, side: Side, sample: Sample) -> None:
        """One dump and restore of a fresh process."""

        def populate(source: Path) -> None:
            populate_tree(source)
            many = source / "tree" / "many"
            many.mkdir()
            for number in range(case.processes * case.files):
                (many / str(number)).touch()

        with Scenario(attached=side.attached, populate=populate) as held:
            held.start(hold_files, processes=case.processes, files=case.files)
            gc.collect()
            prefix = [str(self._peak), str(self._peak_file)]
            run = held.dump(plugin=side.plugin, prefix=prefix, verbosity=2).succeeded()
            sample.dump.append(run.seconds * 1000)
            sample.dump_peak.append(int(self._peak_file.read_text()))
            run = held.restore(plugin=side.plugin, prefix=prefix, verbosity=2).succeeded()
            sample.restore.append(run.seconds * 1000)
            sample.restore_peak.append(int(self._peak_file.read_text()))


def row(case: Case, what: str, pick: Callable[[Sample], list[float]], pair: list[Sample]) -> str:
    """One line of the table: medians, their ratio and difference, and how far rounds differ."""
    base, other = (statistics.median(pick(sample)) for sample in pair)
    ratios = [new / old for old, new in zip(*(pick(sample) for sample in pair), strict=True)]
    middle = statistics.median(ratios)
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [middle] * 3
    times = f"{base:.1f} | {other:.1f} | {other - base:+.1f}"
    return f"| {case.name} | {what} | {times} | {middle:.3f} | {low:.3f} to {high:.3f} |"


def memory_row(case: Case, what: str, base: list[float], other: list[float]) -> str:
    """One line of the second table: medians of criu's peak memory."""
    old, new = statistics.median(base) / 1024, statistics.median(other) / 1024
    return f"| {case.name} | {what} | {old:.1f} | {new:.1f} | {new - old:+.1f} |"


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


def main() -> int:
    """Measure all cases and print both tables."""
    parser = argparse.ArgumentParser(description="measure what the plugin costs criu")
    parser.add_argument("--scale", type=float, default=1.0, help="how many rounds: 0.1 is quick")
    parser.add_argument("--case", default="", help="only cases whose name contains this")
    arguments = parser.parse_args()
    if os.geteuid() or not has_plugin():
        print("The benchmark needs root and the plugin (make plugin).", file=sys.stderr)
        return 1
    prepare_runner()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    memory = []
    print(f"Machine: {machine()}\n")
    print("| case | what | without, ms | with, ms | difference | median ratio | half the ratios |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory))
        for case in CASES:
            if arguments.case not in case.name:
                continue
            pair = bench.measure(case, max(1, round(case.rounds * arguments.scale)))
            print(row(case, "dump", lambda sample: sample.dump, list(pair)))
            print(row(case, "restore", lambda sample: sample.restore, list(pair)), flush=True)
            base, other = pair
            memory.append(memory_row(case, "dump", base.dump_peak, other.dump_peak))
            memory.append(memory_row(case, "restore", base.restore_peak, other.restore_peak))
    print("\nPeak memory of criu:\n")
    print("| case | what | without, MiB | with, MiB | difference |")
    print("|---|---|---|---|---|")
    print("\n".join(memory))
    return 0


if __name__ == "__main__":
    sys.exit(main())
