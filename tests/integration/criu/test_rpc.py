"""CRIU as container engines drive it: by its RPC, with plugins where it looks by itself."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ..conftest import MakeScenario
from ..harness.criu import default_plugins
from ..harness.engines import plugins_in_place
from ..harness.placement import CONTENT
from ..harness.programs import hold_file
from ..harness.scenario import Scenario, reap

pytestmark = [
    pytest.mark.detached,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # pycriu's
]

# A plugin as CRIU's for GPUs is: it is asked first, and has nothing to do with the file.
OTHER = """
static int init(int stage) { return 0; }
static void leave(int stage, int status) { }
static int not_mine(int id) { return -95; }
struct { const char *name; int (*init)(int); void (*exit)(int, int); unsigned version, max_hooks;
         void *hooks[4]; } CR_PLUGIN_DESC = { "other_plugin", init, leave, 0x200, 4,
         { 0, 0, not_mine, not_mine } };
"""


def service(held: Scenario, log: str) -> Any:
    """A request to a criu of its own."""
    import pycriu

    criu = pycriu.criu()
    # By its path: where pycriu does not look for it (CRIU 4.1), the child that could not start it
    # would go on as this process.
    criu.use_binary(shutil.which("criu"))
    held.images.mkdir(exist_ok=True)
    criu.opts.images_dir_fd = os.open(held.images, os.O_RDONLY)
    criu.opts.log_file = log
    criu.opts.log_level = 4
    criu.opts.manage_cgroups_mode = 0  # IGNORE
    return criu


def close(criu: Any) -> None:
    os.close(criu.opts.images_dir_fd)


def dump(held: Scenario) -> None:
    criu = service(held, "dump.log")
    criu.opts.pid = held.pid
    try:
        criu.dump()
    finally:
        close(criu)
    reap([held.pid])


def restore(held: Scenario) -> None:
    criu = service(held, "restore.log")
    try:
        held.pid = criu.restore().pid
    finally:
        close(criu)


def test_cycle(scenario: MakeScenario, tmp_path: Path) -> None:
    """With another plugin beside it, and twice; without it, nothing is restored."""
    plugins = tmp_path / "plugins"
    shutil.copytree(default_plugins(), plugins)
    source = tmp_path / "other.c"
    source.write_text(OTHER)
    command = ["cc", "-shared", "-fPIC", "-w", str(source), "-o", str(plugins / "a_other.so")]
    subprocess.run(command, check=True)
    held = scenario().start(hold_file)
    with plugins_in_place(plugins):
        dump(held)
        restore(held)
        assert held.ask() == CONTENT
        dump(held)
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.move(plugins / "a_other.so", alone)
    with plugins_in_place(alone), pytest.raises(Exception, match="RESTORE"):
        restore(held)
    held.assert_gone()
    assert "criu_detached" in (held.images / "restore.log").read_text(errors="replace")
    with plugins_in_place(plugins):
        restore(held)
    assert held.ask() == CONTENT
