"""The processes that the demo moves; each goes to the background once it holds its files.

holder.py accounts DIRECTORY   writes to a database in the directory, row after row
holder.py files DIRECTORY      holds the directory, and files in it: one mapped, one deleted
holder.py count DATABASE       says how many rows there are
"""

from __future__ import annotations

import mmap
import os
import sqlite3
import sys
import time
from collections.abc import Callable

FILES = 200
SIZE = 64 << 10  # bytes of a file


def accounts(directory: str) -> Callable[[], None]:
    """A database that gets a row every few milliseconds, each in a transaction of its own."""
    database = sqlite3.connect(f"{directory}/accounts.db", isolation_level=None, timeout=60)
    database.execute("PRAGMA journal_mode=MEMORY")
    database.execute("CREATE TABLE entry (amount INTEGER)")
    os.open(directory, os.O_RDONLY)

    def work() -> None:
        while True:
            database.execute("INSERT INTO entry VALUES (1)")
            time.sleep(0.002)

    return work


def files(directory: str) -> Callable[[], None]:
    """Many files, three of them open."""
    folder = os.open(directory, os.O_RDONLY)
    for number in range(FILES):
        fd = os.open(f"{number}", os.O_RDWR | os.O_CREAT, dir_fd=folder)
        os.write(fd, os.urandom(SIZE))
        if number >= 3:
            os.close(fd)
    mapped = mmap.mmap(folder + 2, SIZE)
    os.unlink("2", dir_fd=folder)

    def work() -> None:
        while mapped:
            time.sleep(60)

    return work


def count(path: str) -> None:
    """Read the database by its name, as any other process does."""
    database = sqlite3.connect(path, timeout=60)
    (rows,) = database.execute("SELECT count(*) FROM entry").fetchone()
    (integrity,) = database.execute("PRAGMA integrity_check").fetchone()
    print(rows, "rows, integrity", integrity)


def go_on_in_background(work: Callable[[], None]) -> None:
    """Print the id of a new process that works on, without a terminal, in the root directory."""
    child = os.fork()
    if child:
        print(child)
        return
    os.setsid()
    os.chdir("/")
    null = os.open("/dev/null", os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    os.close(null)
    work()


if __name__ == "__main__":
    what, where = sys.argv[1:]
    if what == "count":
        count(where)
    else:
        go_on_in_background({"accounts": accounts, "files": files}[what](where))
