"""A process that writes to a database: CRIU alone gives up, with the plugin it goes on."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from demo.telling import detached_files, note, step, table
from tests.integration.harness.agent import Check, Task
from tests.integration.harness.placement import SUBDIRECTORY, Bind
from tests.integration.harness.scenario import Scenario

ROWS = 1000


def keep_accounts(task: Task) -> Check:
    """What the demonstrated process does: it commits ROWS rows whenever it is asked."""
    database = sqlite3.connect(task.path("accounts.db"), isolation_level=None)
    database.execute("PRAGMA journal_mode=MEMORY")
    database.execute("CREATE TABLE entry (amount INTEGER)")
    folder = os.open(task.path(), os.O_RDONLY)
    task.detach()

    def commit() -> dict[str, object]:
        for amount in range(ROWS):
            database.execute("INSERT INTO entry VALUES (?)", (amount,))
        (rows,) = database.execute("SELECT count(*) FROM entry").fetchone()
        (integrity,) = database.execute("PRAGMA integrity_check").fetchone()
        return {"rows": rows, "integrity": integrity, "folder": sorted(os.listdir(folder))}

    return commit


def demonstrate() -> None:
    """The steps, each with what is seen of it."""
    with Scenario(binds=[Bind(SUBDIRECTORY)]) as held:
        held.start(keep_accounts)
        expect_rows(held, ROWS)
        before = detached_files(held.pid)
        step(f"Process {held.pid} has a SQLite database and its directory open on a bind mount")
        note("that was then unmounted lazily (umount -l), and goes on committing rows.")

        error = held.dump(plugin=False).failed("Can't lookup mount=").errors()
        step("CRIU alone cannot dump it:")
        note(next(line for line in error if "Can't lookup mount=" in line))

        dump = held.dump().succeeded()
        held.assert_gone()
        step(f"With the plugin it can: dumped in {dump.seconds * 1000:.0f} ms; it is gone.")

        restore = held.restore().succeeded()
        step(f"Restored in {restore.seconds * 1000:.0f} ms as process {held.pid}.")
        table(before, detached_files(held.pid))

        expect_rows(held, 2 * ROWS)
        step(f"It committed {ROWS} more rows: {2 * ROWS} in all, integrity_check ok.")
        expect_on_disk(held.ground.source / "tree" / "accounts.db", 2 * ROWS)
        note("The same rows are in the file of the bind source, as another process reads it.")


def expect_rows(held: Scenario, rows: int) -> None:
    """Have the process commit rows, and hold what it says against what is right."""
    answer = held.ask()
    folder = answer.pop("folder")
    assert answer == {"rows": rows, "integrity": "ok"}, answer
    assert "accounts.db" in folder, folder


def expect_on_disk(path: Path, rows: int) -> None:
    """Read the database by its name in the bind source."""
    database = sqlite3.connect(path)
    (found,) = database.execute("SELECT count(*) FROM entry").fetchone()
    (integrity,) = database.execute("PRAGMA integrity_check").fetchone()
    database.close()
    assert (found, integrity) == (rows, "ok"), (found, integrity)
