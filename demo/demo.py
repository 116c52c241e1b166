"""A database on a lazily unmounted mount: CRIU alone gives up, with the plugin it goes on."""

from __future__ import annotations

import os
import platform
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.integration.harness import kernel, look
from tests.integration.harness.agent import Check, Task
from tests.integration.harness.criu import has_plugin
from tests.integration.harness.placement import SUBDIRECTORY, Bind
from tests.integration.harness.scenario import Scenario, prepare_runner

ROWS = 1000
SHOWN = ("/accounts.db", "/")  # as the kernel names files on a detached mount: from its root


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


def main() -> int:
    """Run the demonstration; 0 when every step went as it should."""
    if os.geteuid():
        print("The demo dumps and restores a process, which needs root.")
        return 1
    if not has_plugin():
        print("The plugin is not built: run make plugin.")
        return 1
    prepare_runner()
    print(f"Linux {platform.release()}, CRIU {criu_version()}; {kernel_path()}\n")
    with Scenario(binds=[Bind(SUBDIRECTORY)]) as held:
        try:
            return demonstrate(held)
        except AssertionError as failure:
            print(f"\nFAILED: {failure}")
            return 1


def demonstrate(held: Scenario) -> int:
    """The steps, each with what is seen of it."""
    held.start(keep_accounts)
    expect_rows(held, ROWS)
    before = mounts(held.pid)
    step(f"Process {held.pid} has a SQLite database and its directory open on a bind mount")
    note("that was then unmounted lazily (umount -l), and goes on committing rows.")

    error = held.dump(plugin=False).failed("Can't lookup mount=").errors()
    step("CRIU alone cannot dump it:")
    note(next(line for line in error if "Can't lookup mount=" in line))

    dump = held.dump().succeeded()
    held.assert_gone()
    step(f"With the plugin it can: dumped in {dump.seconds * 1000:.0f} ms; the process is gone.")

    restore = held.restore().succeeded()
    after = mounts(held.pid)
    step(f"Restored in {restore.seconds * 1000:.0f} ms as process {held.pid}.")
    table(held.pid, before, after)

    expect_rows(held, 2 * ROWS)
    step(f"It committed {ROWS} more rows: {2 * ROWS} in all, integrity_check ok.")
    expect_on_disk(held.ground.source / "tree" / "accounts.db", 2 * ROWS)
    note("The same rows are in the file of the bind source, as another process reads it.")
    print("\nThe demo worked.")
    return 0


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


def mounts(pid: int) -> dict[int, tuple[str, int, bool]]:
    """The shown files by fd: link, mount id, and whether that mount is detached."""
    return {
        fd: (file.link, file.mnt_id, look.is_detached(pid, fd))
        for fd, file in sorted(look.open_files(pid).items())
        if file.link in SHOWN
    }


def table(
    pid: int, before: dict[int, tuple[str, int, bool]], after: dict[int, tuple[str, int, bool]]
) -> None:
    """What was on which mount."""
    assert before.keys() == after.keys(), look.open_files(pid)
    print(f"\n   {'fd':>4}  {'file':<14} {'mount before':<18} mount after")
    for fd, (link, mnt_id, detached) in before.items():
        _, new_id, new_detached = after[fd]
        assert detached and new_detached, "a mount is not detached"
        old, new = f"{mnt_id} (detached)", f"{new_id} (detached)"
        print(f"   {fd:>4}  {link:<14} {old:<18} {new}")
    assert len({mnt_id for _, mnt_id, _ in after.values()}) == 1, "one mount became two"
    print()


def criu_version() -> str:
    """The version that criu itself tells."""
    output = subprocess.run(["criu", "--version"], check=True, capture_output=True, text=True)
    found = re.search(r"Version: (\S+)", output.stdout)
    return found.group(1) if found else "of unknown version"


def kernel_path() -> str:
    """Which way the kernel offers to tell a detached mount from others."""
    if kernel.has_statmount_by_fd():
        return "detached mounts are told by STATMOUNT_BY_FD"
    return "detached mounts are told by the fallback (no STATMOUNT_BY_FD before Linux 7.0)"


_steps = iter(range(1, 100))


def step(text: str) -> None:
    """Print a numbered step."""
    print(f"{next(_steps):>2}. {text}")


def note(text: str) -> None:
    """Print what belongs to the step before."""
    print(f"    {text}")


if __name__ == "__main__":
    sys.exit(main())
