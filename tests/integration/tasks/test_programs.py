"""Real programs whose life is on a detached mount: they go on as if nothing had happened."""

from __future__ import annotations

import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from ..conftest import MakeScenario
from ..harness import look
from ..harness.agent import Check, Task
from ..harness.placement import CONTENT, Placement, populate_tree
from ..harness.scenario import Scenario


def run(command: list[str], directory: str) -> Callable[[str], str]:
    """In the dumped process: start a program, which answers a line with a line."""
    program = subprocess.Popen(
        command,
        cwd=directory,
        env={"PATH": os.environ["PATH"]},
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    questions, answers = program.stdin, program.stdout
    assert questions is not None and answers is not None

    def ask(line: str) -> str:
        questions.write(f"{line}\n")
        questions.flush()
        return answers.readline().rstrip("\n")

    return ask


def hold_program(task: Task, command: list[str], questions: list[str]) -> Check:
    """A program in the tree of the mount; each check asks it the next of the questions."""
    ask = run([part.format(mount=task.path()) for part in command], task.path())
    first = ask(questions.pop(0))
    task.detach()
    return lambda: first + " " + ask(questions.pop(0)) if first else "it did not start"


def program_of(held: Scenario) -> int:
    """The one child of the process."""
    _, program = look.tree(held.pid)
    return program


def image_of(pid: int) -> tuple[str, set[str]]:
    """What a process executes, and the files that it has mapped."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    mapped = {line.split(None, 5)[5] for line in lines if "/" in line}
    return os.readlink(f"/proc/{pid}/exe"), mapped


# Shells read a script as they go. What comes after the comment, they read after the restore.
SCRIPT = f"""\
read -r line; echo "started $line"
read -r line; read -r text <"$line"; echo "$text"
{"#" * 40000}
read -r line; echo "$line" >written; echo done
"""


def populate_with_script(source: Path) -> None:
    """The common tree and a shell script."""
    populate_tree(source)
    (source / "tree" / "script").write_text(SCRIPT)


def files_of(pid: int) -> dict[int, tuple[str, bool]]:
    """The links of a shell's files, and whether they are detached; it moves their positions."""
    files = {fd: file.link for fd, file in look.open_files(pid).items()}
    return {fd: (link, look.is_detached(pid, fd)) for fd, link in files.items() if link[0] == "/"}


@pytest.mark.covers("file", "cwd")
@pytest.mark.parametrize("shell", ["bash", "dash"])
def test_shell(scenario: MakeScenario, placement: Placement, shell: str) -> None:
    """It goes on in its directory, at the place in its script where it was."""
    held = scenario(placement, populate=populate_with_script)
    held.start(hold_program, command=[shell, "script"], questions=["here", "file", "new"])
    before = files_of(program_of(held))
    for answer in (f"started here {CONTENT.rstrip()}", "started here done"):
        held.dump().succeeded()
        held.restore().succeeded()
        assert files_of(program_of(held)) == before
        assert held.ask() == answer
    assert (held.ground.source / "tree" / "written").read_text() == "new\n"


PYTHON = os.path.realpath(sys.executable)
# Imports what it is told, and tells where it found it.
IMPORTER = """
import importlib, sys
for name in sys.stdin:
    print(importlib.import_module(name.strip()).__file__, flush=True)
"""


def copy_into(root: Path, path: str) -> None:
    """Copy a file to the same path below another root."""
    target = root / path.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(path, target)


def populate_with_python(source: Path) -> None:
    """The interpreter, its shared libraries, the loader among them, and its modules."""
    populate_tree(source)
    root = source / "tree"
    libraries = subprocess.run(["ldd", PYTHON], check=True, capture_output=True, text=True)
    for path in [PYTHON, *re.findall(r"(/\S+) \(", libraries.stdout)]:
        copy_into(root, path)
    modules = sysconfig.get_path("stdlib")
    shutil.copytree(
        modules,
        root / modules.lstrip("/"),
        ignore=shutil.ignore_patterns("__pycache__", "test*", "config-*", "idlelib", "*-packages"),
    )


def start_python(held: Scenario) -> Scenario:
    """An interpreter whose root is the mount, and which imports a module when it is asked."""
    return held.start(
        hold_program,
        command=["chroot", "{mount}", PYTHON, "-I", "-S", "-c", IMPORTER],
        questions=["json", "_queue", "textwrap"],
    )


@pytest.mark.covers("exe", "root", "cwd", "private_mapping")
def test_python(scenario: MakeScenario, placement: Placement) -> None:
    """An interpreter that was installed on the mount, its root, imports modules from there."""
    held = start_python(scenario(placement, populate=populate_with_python))
    before = image_of(program_of(held))
    modules = sysconfig.get_path("stdlib")
    held.cycle()
    assert image_of(program_of(held)) == before
    assert held.ask().startswith(f"{modules}/json/__init__.py {modules}/lib-dynload/_queue.")
    held.cycle()
    assert held.ask() == f"{modules}/json/__init__.py {modules}/textwrap.py"
    assert image_of(program_of(held))[0] == before[0]


LEDGER_H = """
#include <stdexcept>
#include <string>
struct refused : std::runtime_error { using runtime_error::runtime_error; };
void add(long &sum, const std::string &amount);
"""
LEDGER_CC = """
#include "ledger.h"
void add(long &sum, const std::string &amount)
{
    if (amount.empty() || amount[0] == '-')
        throw refused("refused: " + amount);
    sum += std::stol(amount);
}
"""
# A thread serves, the main thread waits for it; the sum is in a file that is mapped.
PROGRAM_CC = """
#include "ledger.h"
#include <fcntl.h>
#include <iostream>
#include <sys/mman.h>
#include <thread>
#include <unistd.h>

static void serve(long &sum)
{
    for (std::string line; std::getline(std::cin, line);) {
        try {
            add(sum, line);
            std::cout << sum << std::endl;
        } catch (const refused &error) {
            std::cout << error.what() << std::endl;
        }
    }
}

int main()
{
    int fd = open("sum", O_RDWR);
    void *sum = mmap(nullptr, sizeof(long), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    std::thread(serve, std::ref(*static_cast<long *>(sum))).join();
}
"""


def populate_with_program(source: Path) -> None:
    """A C++ program and its own shared library, which it finds beside itself."""
    populate_tree(source)
    tree = source / "tree"
    for name, text in {
        "ledger.h": LEDGER_H,
        "ledger.cc": LEDGER_CC,
        "program.cc": PROGRAM_CC,
        "sum": "\0" * 8,
    }.items():
        (tree / name).write_text(text)
    compile_library = ["g++", "-shared", "-fPIC", "-o", "libledger.so", "ledger.cc"]
    compile_program = ["g++", "-pthread", "-o", "program", "program.cc"]
    compile_program += ["-L.", "-lledger", "-Wl,-rpath,$ORIGIN"]
    for command in (compile_library, compile_program):
        subprocess.run(command, check=True, cwd=tree)


@pytest.mark.covers("exe", "cwd", "shared_mapping", "private_mapping", column="host")
def test_cpp_program(scenario: MakeScenario) -> None:
    """Threads, exceptions and static data of a program and a library of the mount."""
    held = scenario(populate=populate_with_program)
    held.start(hold_program, command=["./program"], questions=["20", "22", "-1", "100"])
    before = image_of(program_of(held))
    assert any(path.endswith("/libledger.so") for path in before[1])
    for answer in ("20 42", "20 refused: -1", "20 142"):
        held.cycle()
        assert image_of(program_of(held)) == before
        assert held.ask() == answer
    total = (held.ground.source / "tree" / "sum").read_bytes()
    assert int.from_bytes(total, sys.byteorder) == 142


def hold_database(task: Task) -> Check:
    """A writer, and a reader that is in the middle of a transaction."""

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(task.path("accounts.db"), timeout=0, isolation_level=None)

    def count(database: sqlite3.Connection) -> int:
        (rows,) = database.execute("SELECT count(*) FROM entry").fetchone()
        return int(rows)

    def reader() -> Check:
        database = connect()
        database.execute("BEGIN")
        count(database)

        def check() -> list[int]:
            in_transaction = count(database)
            database.execute("COMMIT")
            afterwards = count(database)
            database.execute("BEGIN")
            count(database)
            return [in_transaction, afterwards]

        return check

    first = connect()
    first.execute("PRAGMA journal_mode=WAL")
    first.execute("CREATE TABLE entry (amount INTEGER)")
    first.close()  # SQLite forbids to carry a connection into a child
    ask_reader = task.fork(reader)
    database = connect()
    count(database)  # the log is opened on first use
    task.detach()

    def check() -> dict[str, object]:
        for amount in range(100):
            database.execute("INSERT INTO entry VALUES (?)", (amount,))
        (integrity,) = database.execute("PRAGMA integrity_check").fetchone()
        return {
            "reader": ask_reader(),
            "writer": count(database),
            "integrity": integrity,
            "busy": database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0],
        }

    return check


@pytest.mark.covers("file", "shared_mapping", "posix_lock")
def test_sqlite(scenario: MakeScenario, placement: Placement) -> None:
    """A reader's transaction sees after the restore what it saw before, and blocks as before."""
    held = scenario(placement).start(hold_database)
    for turn in (1, 2, 3):
        before = look.seen(held.pid)
        held.dump("--file-locks").succeeded()
        held.restore("--file-locks").succeeded()
        assert look.seen(held.pid) == before
        assert held.ask() == {
            "reader": [100 * (turn - 1), 100 * turn],
            "writer": 100 * turn,
            "integrity": "ok",
            "busy": 1,  # the log cannot be emptied while the reader's lock is held
        }


def hold_redis(task: Task) -> Check:
    """A redis-server in a directory of the mount, listening outside of it."""
    command = ["redis-server", "--port", "0", "--unixsocket", f"{task.base}/redis"]
    command += ["--save", "", "--appendonly", "yes", "--appendfsync", "always"]
    server = subprocess.Popen(
        command, cwd=task.path(), text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    log = server.stdout
    assert log is not None

    def wait_for(text: str) -> bool:
        return any(text in line for line in log)

    wait_for("Ready to accept connections")
    task.detach()
    return lambda: wait_for("AOF rewrite finished successfully")


def redis(held: Scenario, command: str) -> str:
    """What the server answers to a command that has an answer of one line."""
    with socket.socket(socket.AF_UNIX) as connection, connection.makefile("rw") as stream:
        connection.connect(str(held.ground.base / "redis"))
        stream.write(f"{command}\n")
        stream.flush()
        connection.shutdown(socket.SHUT_WR)
        answer, *_ = stream.readlines()  # to the end: the server has closed its side
        return answer.rstrip()


@pytest.mark.covers("file", "cwd")
def test_redis(scenario: MakeScenario, placement: Placement) -> None:
    """Its append-only file is written on, and rewritten by a child under names in its directory."""
    held = scenario(placement).start(hold_redis)
    assert redis(held, "INCR counter") == ":1"
    held.cycle()
    assert redis(held, "INCR counter") == ":2"
    assert redis(held, "BGREWRITEAOF").startswith("+Background append only file rewriting")
    assert held.ask() is True
    held.dump().succeeded()  # in the midst of it: old files are closed by a thread
    held.restore().succeeded()
    assert redis(held, "INCR counter") == ":3"
    held.kill()
    files = held.ground.source / "tree" / "appendonlydir"
    check = ["redis-check-aof", str(files / "appendonly.aof.manifest")]
    answer = subprocess.run(check, check=False, capture_output=True, text=True)
    assert "All AOF files and manifest are valid" in answer.stdout, answer
