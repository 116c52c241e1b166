"""An entry point that switches to a new root and keeps what it had of the old one."""

from __future__ import annotations

import os
import sys

import pytest

from ..conftest import MakeScenario
from ..harness import look
from ..harness.agent import Check, Task, calls
from ..harness.placement import Placement

# The new root shows the same files and all mounts; the old one is put away, as switch_root does.
SWITCH = """
os.mkdir("{base}/newroot")
libc.mount(b"/", b"{base}/newroot", None, ctypes.c_ulong(4096 | 16384), None)
os.chdir("{base}/newroot")
call(155, b".", b".")
libc.umount2(b".", 2)
answer()
"""


def keep_old_root(task: Task) -> Check:
    """A directory of the old root; the interpreter and its libraries are mapped from there, too."""
    kept = os.open("/usr", os.O_RDONLY | os.O_DIRECTORY)
    if not task.attached:
        calls(SWITCH.replace("{base}", task.base))
    here = sys.executable.removeprefix("/usr/")
    return lambda: [kept, os.stat(here, dir_fd=kept).st_size == os.stat(sys.executable).st_size]


@pytest.mark.detached
@pytest.mark.covers("directory", "exe")
def test_switch_root(scenario: MakeScenario) -> None:
    held = scenario(Placement.NAMESPACE, binds=[]).start(keep_old_root)
    kept, same = held.ask()
    assert same
    held.assert_detached([kept])
    held.cycle()
    held.assert_detached([kept])
    assert held.ask() == [kept, True]
    assert os.readlink(f"/proc/{held.pid}/exe") == os.path.realpath(sys.executable)
    assert len(look.open_files(held.pid)) == 4
