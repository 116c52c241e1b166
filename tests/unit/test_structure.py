"""What runs inside CRIU starts fast, and a restored task needs nothing but what is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import _cffi_backend
import pytest

# Slow to import, or with side effects; a whole dump of one file may cost 25 ms.
UNWANTED = [
    "argparse",
    "asyncio",
    "collections",
    "contextlib",
    "ctypes",
    "dataclasses",
    "enum",
    "functools",
    "google",
    "inspect",
    "locale",
    "logging",
    "pathlib",
    "pwd",
    "re",
    "signal",
    "socket",
    "struct",
    "subprocess",
    "tempfile",
    "threading",
    "traceback",
    "typing",
    "warnings",
]

# Modules that CRIU does not load: the command line tool and what it uses.
TOOLS = {"__main__", "check", "cli", "trial"}


def run(lib: Path, script: str) -> str:
    """Run a script as CRIU's Python is: isolated, without site, with the package's path."""
    backend = str(Path(str(_cffi_backend.__file__)).parent)
    prefix = f"import sys; sys.path[:0] = {[str(lib), backend]!r}\n"
    command = [sys.executable, "-I", "-S", "-c", prefix + script]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_imports(lib: Path) -> None:
    found = run(
        lib,
        "import criu_detached.dump, criu_detached.restore, criu_detached.host\n"
        "print(*sys.modules, sep='\\n')",
    ).split()
    bare = run(lib, "print(*sys.modules, sep='\\n')").split()
    assert "criu_detached.dump" in found
    assert set(UNWANTED) & (set(found) - set(bare)) == set()


def test_every_module_is_loaded_before_the_tasks(lib: Path) -> None:
    """Nothing of the package can be imported in a task, so it is all there before."""
    found = run(
        lib,
        "import criu_detached.dump, criu_detached.restore, criu_detached.host\n"
        "print(*sys.modules, sep='\\n')",
    ).split()
    modules = {path.stem for path in (lib / "criu_detached").glob("*.py")} - {"__init__", "entry"}
    missing = {name for name in modules - TOOLS if f"criu_detached.{name}" not in found}
    assert missing == set()


@pytest.mark.parametrize("module", ["restore", "dump"])
def test_import_has_no_side_effect(lib: Path, module: str) -> None:
    """Neither a file is left open nor a word is said."""
    script = (
        "import os\n"
        "before = sorted(os.listdir('/proc/self/fd'))\n"
        f"import criu_detached.{module}\n"
        "assert sorted(os.listdir('/proc/self/fd')) == before\n"
    )
    assert run(lib, script) == ""


# A restore without imports: every path in it, also that of an error, must do.
TASK = """
import os, stat
from criu_detached import host, kernel, log, paths, realise, recordfile, restore, superblock
from criu_detached.errors import DetachedError, quote, reason
from criu_detached.records import *
log.set_writer(lambda level, text: None)
tree = os.open(sys.argv[1], os.O_RDONLY)
os.mkdir(sys.argv[1] + "/dir")
imported = []
sys.addaudithook(lambda event, args: imported.append(args[0]) if event == "import" else None)
for place in (sys.meta_path, sys.path, sys.path_hooks):
    place.clear()
sys.path_importer_cache.clear()
for work in (
    lambda: paths.open_at(tree, b"dir"),
    lambda: paths.open_at(tree, b"absent"),
    lambda: paths.open_mountpoint(tree, b"/dir"),
    lambda: kernel.clone_mount(tree),
    lambda: kernel.open_by_handle(tree, kernel.name_to_handle(tree), os.O_PATH),
    lambda: recordfile.read_records(tree),
    lambda: realise.check_mount(Mount(origin=9)),
    lambda: realise.realise(
        Mount(
            root_type=stat.S_IFDIR,
            superblock=superblock.superblock_of(tree, b"fs"),
            bind_source=BindSource(mountpoint=b"/dir", path=b"."),
        ),
        tree, True, -1,
    ),
    lambda: realise.realise(
        Mount(bind_source=BindSource(mountpoint=b"/absent\\xff", path=b".")), tree, True, -1
    ),
    lambda: quote(b"\\xff\\n\\0").encode("ascii", "backslashreplace"),
    lambda: "\\u20ac\\udcff".encode("ascii", "backslashreplace"),
    lambda: [reason(number) for number in range(140)],
    lambda: f"{1:#x} {os.makedev(1, 2)}",
):
    try:
        work()
    except (OSError, DetachedError) as error:
        str(error)
print(*imported)
"""


def test_nothing_is_imported_in_a_task(lib: Path, tmp_path: Path) -> None:
    backend = str(Path(str(_cffi_backend.__file__)).parent)
    script = f"import sys; sys.path[:0] = {[str(lib), backend]!r}\n" + TASK
    command = [sys.executable, "-I", "-S", "-c", script, str(tmp_path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")
