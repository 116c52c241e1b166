#!/usr/bin/env python3
"""What the plugin costs a podman container: nothing detached, and ten mounts with a hundred fds.

Run it in the root filesystem: ./setup_kernel.sh native python3 bench/containers.py [ROUNDS]
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.integration.harness.agent import Check, Task
from tests.integration.harness.container import Container
from tests.integration.harness.engines import Engine, prepared_engines
from tests.integration.harness.placement import Bind, Placement
from tests.integration.harness.scenario import prepare_runner

ENGINE = "podman-crun"
ROUNDS = 9
MOUNTS, FILES = 10, 10
AT_MOST_RATIO, AT_MOST_MORE = 1.02, 0.060  # without anything detached; seconds, with it

Times = tuple[float, float]  # seconds: checkpoint, restore


def hold_many(task: Task, mounts: int, files: int) -> Check:
    """The same file of each mount, several times."""
    fds = [os.open(task.path("file", n), os.O_RDONLY) for n in range(mounts) for _ in range(files)]
    if mounts:
        task.detach()
    return lambda: len(fds)


def rounds(held: Container, plugin: bool, count: int) -> Iterator[Times]:
    """Checkpoint and restore one container again and again."""
    for _ in range(count):
        dump = held.checkpoint(plugin=plugin).succeeded()
        yield dump.seconds, held.restore(plugin=plugin).succeeded().seconds


def compare(one: Callable[[], Times], other: Callable[[], Times], count: int) -> list[list[Times]]:
    """Both in turn, for a machine gets slower and faster."""
    found: list[list[Times]] = [[], []]
    for number in range(count):
        for which in (0, 1) if number % 2 else (1, 0):
            found[which].append((one, other)[which]())
    return found


def report(what: str, plain: list[Times], loaded: list[Times]) -> tuple[float, float]:
    """Print medians; return the ratio and the difference of checkpoint and restore together."""
    before, after = (statistics.median(map(sum, times)) for times in (plain, loaded))
    for name, place in (("checkpoint", 0), ("restore", 1)):
        medians = [statistics.median(time[place] for time in times) for times in (plain, loaded)]
        print(f"  {what}, {name}: {medians[0] * 1000:.0f} ms, with it {medians[1] * 1000:.0f} ms")
    ratio = statistics.median(sum(b) / sum(a) for a, b in zip(plain, loaded, strict=True))
    return ratio, after - before


def nothing_detached(engine: Engine, count: int) -> tuple[float, float]:
    """A container that needs no plugin, with and without it."""
    with Container(engine, binds=[]) as held:
        held.start(hold_many, mounts=0, files=0)
        with_it, without = (lambda p=p: next(rounds(held, p, 1)) for p in (True, False))
        plain, loaded = compare(without, with_it, count)
    return report("nothing detached", plain, loaded)


def many_detached(engine: Engine, count: int) -> tuple[float, float]:
    """Ten detached mounts with a hundred fds, and the same attached."""
    binds = [Bind()] * MOUNTS
    with (
        Container(engine, Placement.HOST_SOURCE, binds) as detached,
        Container(engine, Placement.HOST_SOURCE, binds, attached=True) as attached,
    ):
        for held in (detached, attached):
            held.start(hold_many, mounts=MOUNTS, files=FILES)
        plain, loaded = compare(
            lambda: next(rounds(attached, False, 1)), lambda: next(rounds(detached, True, 1)), count
        )
    return report(f"{MOUNTS} mounts, {MOUNTS * FILES} fds", plain, loaded)


def main() -> int:
    """Measure; 0 when both are within their bounds."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    prepare_runner()
    print(f"A container of {ENGINE}, medians of {count}")
    with prepared_engines() as engines:
        engine = engines.get(ENGINE)
        ratio, _ = nothing_detached(engine, count)
        _, more = many_detached(engine, count)
    print(f"  nothing detached: {ratio:.3f} times, at most {AT_MOST_RATIO}")
    print(f"  with detached mounts: {more * 1000:+.0f} ms, at most +{AT_MOST_MORE * 1000:.0f} ms")
    return 0 if ratio <= AT_MOST_RATIO and more <= AT_MOST_MORE else 1


if __name__ == "__main__":
    sys.exit(main())
