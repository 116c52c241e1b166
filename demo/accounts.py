"""A process that writes to a database: CRIU alone gives up, with the plugin it goes on."""

from __future__ import annotations

import re

from demo.stage import CRIU, HOLDER, Stage
from demo.telling import detached_files, heading, note


def demonstrate() -> None:
    """Run it; raises AssertionError when a step goes wrong."""
    heading("A database on a mount that was unmounted lazily")
    with Stage() as stage:
        stage.run("mkdir disk mnt images")
        stage.run("mount --bind disk mnt")
        stage.start(f"{HOLDER} accounts mnt")
        stage.run("umount --lazy mnt")
        note("no mount shows the file that the process has open; it goes on writing to it:")
        _count_more_rows(stage, 0)
        before = detached_files(stage.pid)

        note("CRIU alone cannot dump it:")
        # A transaction may be under way, with its locks.
        stage.fail(f"criu dump --tree $PID {CRIU} --file-locks", "Can't lookup mount=")
        note("with the plugin it can:")
        stage.dump("--file-locks")
        rows = _count_more_rows(stage, 0)
        stage.restore(before, "--file-locks")
        note("no row is lost, and it goes on:")
        _count_more_rows(stage, rows)


def _count_more_rows(stage: Stage, rows: int) -> int:
    """Show how many rows there are by now; returns it."""
    command = f"sleep 0.1; {HOLDER} count disk/accounts.db"
    said = stage.run(command).strip()
    note(said)
    found = re.fullmatch(r"(\d+) rows, integrity ok", said)
    assert found and int(found[1]) > rows, said
    return int(found[1])
