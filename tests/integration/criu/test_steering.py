"""A CRIU that lacks what steering needs: every dump that needs no plugin works, with a warning."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from ..conftest import MakeScenario
from ..harness.placement import CONTENT
from ..harness.programs import hold_file

pytestmark = pytest.mark.detached


def criu_without(symbol: str, directory: Path) -> None:
    """A copy of criu whose dynamic symbol has another last letter; no other byte moves."""
    path = shutil.which("criu")
    assert path
    text = Path(path).read_bytes()
    name = b"\0" + symbol.encode() + b"\0"
    assert name in text, f"criu has no symbol {symbol}"
    renamed = name[:-2] + b"X\0"
    copy = directory / "criu"
    copy.write_bytes(text.replace(name, renamed, 1))
    copy.chmod(0o755)


# What such copies import instead of calls of libc.
OTHER_CALLS = """
#define _GNU_SOURCE
#include <fcntl.h>
#include <unistd.h>

ssize_t readlinX(const char *path, char *buffer, size_t size)
{
	return readlink(path, buffer, size);
}

int openat6X(int directory, const char *path, int flags, mode_t mode)
{
	return openat64(directory, path, flags, mode);
}
"""


@pytest.mark.parametrize("symbol", ["add_external", "lookup_mnt_id"])
def test_symbol_missing(
    scenario: MakeScenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, symbol: str
) -> None:
    criu_without(symbol, tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    held = scenario(attached=True).start(hold_file)
    dump = held.dump(plugin=True).succeeded()
    ours = [line for line in dump.warnings() if "criu-detached" in line]
    assert len(ours) == 1 and symbol in ours[0], dump.report()
    held.restore(plugin=True).succeeded()
    assert held.ask() == CONTENT
    detached = scenario().start(hold_file)
    detached.dump(plugin=True).failed("Can't lookup mount=")
    assert detached.ask() == CONTENT


def test_restore_with_symbol_missing(
    scenario: MakeScenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images that need the plugin are refused by a CRIU that it can't steer."""
    held = scenario().start(hold_file)
    held.dump().succeeded()
    criu_without("inherit_fd_add", tmp_path)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        held.restore().failed("criu-detached.*inherit_fd_add")
    held.assert_gone()
    held.restore().succeeded()
    assert held.ask() == CONTENT


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
def test_call_not_imported(
    scenario: MakeScenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A criu that calls libc in another way, as one that is linked statically does."""

    source, library = tmp_path / "other.c", tmp_path / "other.so"
    source.write_text(OTHER_CALLS)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)

    def other_criu(call: str) -> list[str]:
        (tmp_path / call).mkdir()
        criu_without(call, tmp_path / call)
        return ["env", f"LD_PRELOAD={library}", f"PATH={tmp_path / call}:{os.environ['PATH']}"]

    attached = scenario(attached=True).start(hold_file)
    dump = attached.dump(plugin=True, prefix=other_criu("readlink")).succeeded()
    ours = [line for line in dump.warnings() if "criu-detached" in line]
    assert len(ours) == 1 and "does not import readlink" in ours[0], dump.report()
    attached.restore(plugin=True).succeeded()
    held = scenario().start(hold_file)
    held.dump().succeeded()
    held.restore(prefix=other_criu("openat64")).failed("criu-detached.*does not import openat")
    held.assert_gone()
    held.restore().succeeded()
    assert held.ask() == CONTENT
