"""Who can write the code that CRIU will run?"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from criu_detached.command import writers
from criu_detached.command.line import FAIL, OK


@pytest.fixture
def all_roots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file belongs to root, whoever runs the tests."""
    lstat = os.lstat

    def rooted(path: Any) -> os.stat_result:
        found = list(lstat(path))
        found[4] = 0
        return os.stat_result(found)

    monkeypatch.setattr(os, "lstat", rooted)


def link(plugin: Path, *paths: Path) -> None:
    """Link the plugin's Python part with libraries, as far as the check looks."""
    names = ["libc.so.6", *map(str, paths), "libpython3.so"]
    content = "\0".join(["\x7fELF/usr/not/a/name.so", *names, "/not.so.either", ""])
    (plugin / "criu_detached" / "embed.so").write_bytes(os.fsencode(content))


def test_linked_files(plugin: Path) -> None:
    paths = [Path("/usr/lib/python3/a.so"), Path("/home/é/b.so")]
    link(plugin, *paths)
    assert writers.linked_files(plugin) == paths


@pytest.mark.usefixtures("all_roots")
def test_only_root(plugin: Path) -> None:
    line = writers.check_writers(plugin, None)
    assert line.state == OK, line


@pytest.mark.usefixtures("all_roots")
@pytest.mark.parametrize(
    "part", [".", "criu_detached.so", "criu_detached", "criu_detached/lib/criu_detached/entry.py"]
)
@pytest.mark.parametrize("bits", [0o002, 0o020])
def test_others_write(plugin: Path, part: str, bits: int) -> None:
    path = plugin / part
    path.chmod(path.stat().st_mode | bits)
    line = writers.check_writers(plugin, None)
    who = "everyone" if bits == 0o002 else "group"
    assert line.state == FAIL and f"{path} is writable by {who}" in line.text


@pytest.mark.usefixtures("all_roots")
def test_others_write_linked(plugin: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    linked = tmp_path_factory.mktemp("linked") / "a.so"
    linked.touch()
    linked.chmod(0o666)
    link(plugin, linked)
    assert f"{linked} is writable" in writers.check_writers(plugin, None).text


@pytest.mark.usefixtures("all_roots")
def test_others_write_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "open" / "real").mkdir(parents=True)
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "link").symlink_to("../open/real")
    found = list(writers.writers([tmp_path / "a" / "link"]))
    assert found == [f"{tmp_path}/open is writable by everyone (mode 777)"]


@pytest.mark.usefixtures("all_roots")
def test_sticky_is_safe(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp").chmod(0o1777)
    assert not list(writers.writers([tmp_path / "tmp"]))


def test_foreign_owner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lstat = os.lstat

    def owned(path: Any) -> os.stat_result:
        found = list(lstat(path))
        found[4] = 1234 if str(path).endswith("mine") else 0
        return os.stat_result(found)

    (tmp_path / "mine").touch()
    monkeypatch.setattr(os, "lstat", owned)
    assert list(writers.writers([tmp_path / "mine"])) == [f"{tmp_path}/mine belongs to uid 1234"]
