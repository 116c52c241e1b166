"""Each system call of a look fails in turn: then that is told, or what was to be seen is seen."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from criu_detached import kernel

from .. import support

# In a PID namespace with nobody else, so that there are few calls. strace counts them for each
# process, so those of the child that looks have numbers of their own.
LOOK = """
import os, subprocess, sys
sys.path[:0] = [sys.argv[1], sys.argv[2]]
from criu_detached.kernel import walk
from criu_detached.kernel.walk import MountTable, Walker
walker = Walker(patience=2)
dev = int(sys.argv[3])
if sys.argv[4] == "again":
    walker.look_at_others([], MountTable.of([]))
try:
    found = walker.look_at_others([], MountTable.of([]))
except OSError as error:
    print("refused", error.errno)
else:
    held = {seen.what for seen in found.on(dev=dev) if not seen.gone}
    failed = [seen.error for seen in found.on() if seen.error and not seen.gone]
    wanted = {walk.FD, walk.CWD, walk.MAPPING, walk.SOCKET}
    print("failed" if failed else "all" if held >= wanted else f"missed {held}")
"""

HOLDER = """
import mmap, os, signal, socket, sys
os.chdir(sys.argv[1])
fd = os.open("file", os.O_RDONLY)
mapped = mmap.mmap(fd, 4, prot=1)
bound = socket.socket(socket.AF_UNIX)
bound.bind("socket")
signal.pause()
"""

INSIDE = """
mount -t proc proc /proc
python3 -c "$1" "$2" &
shift 2
while ! [ -S "$1/socket" ]; do sleep 0.05; done
shift
"$@"
exit $?
"""

CALLS = {
    "statx": ["EIO", "EACCES", "ENOMEM", "EINTR"],
    "openat": ["EMFILE", "ENFILE", "EACCES", "EINTR"],
    "getdents64": ["EIO", "ENOMEM"],
    "ioctl": ["EIO", "EINTR"],
    "lseek": ["EIO"],
}
STEPS = {"getdents64": 5, "ioctl": 7, "lseek": 7}  # those of them that are alike
MOST = 60  # calls of one kind that the child makes at most


def look(directory: Path, dev: int, inject: str) -> str:
    """What comes of a look in which a call fails."""
    lib = str(Path(kernel.__file__).parents[2])
    backend = str(Path(shutil.__file__).parent)  # where the library is
    strace = ["strace", "--follow-forks", "--quiet=all", "--output=/dev/null"]
    strace += ["--trace=" + inject.partition(":")[0], "--inject=" + inject]
    program = [sys.executable, "-c", LOOK, lib, backend, str(dev), "once"]
    shell = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", INSIDE, "sh"]
    command = [*shell, HOLDER, str(directory), str(directory), *strace, *program]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    (directory / "socket").unlink(missing_ok=True)
    return found.stdout.strip() or found.stderr


@pytest.mark.parametrize("call", CALLS)
def test_each_call(tmp_path: Path, call: str) -> None:
    if not shutil.which("strace") or os.geteuid():
        pytest.skip("needs strace and root")
    point = tmp_path / "fs"
    point.mkdir()
    with support.mounted(point, "-t", "tmpfs", "faults"):
        (point / "file").write_text("content")
        dev = point.stat().st_dev
        results = []
        for number in range(1, MOST, STEPS.get(call, 1)):
            error = CALLS[call][number % len(CALLS[call])]
            found = look(point, dev, f"{call}:error={error}:when={number}")
            results.append(f"{number} {error}: {found}")
            if "Error" in found and "refused" not in found:
                continue  # the program did not come as far as to look
            assert found.split()[0] in ("all", "failed", "refused"), results
        assert any("failed" in found or "refused" in found for found in results), results
