"""The settings of container runtimes: what install writes and uninstall removes."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from criu_detached.command import programs, runtimes
from criu_detached.command.built import DEFAULT_LIB, PARTS

LIB = Path("/opt/criu")
CRUN_HANDS_FILE = runtimes.crun_hands_file  # which most tests replace
OTHERS = b"network-lock nftables\n# libdir /not/this\ntcp-established"  # no newline at its end


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only root may write here, and crun is a new one."""
    monkeypatch.setattr(runtimes, "writers", lambda paths: [])
    monkeypatch.setattr(runtimes, "crun_hands_file", lambda: True)


def test_file_is_made_and_removed(tmp_path: Path) -> None:
    file = tmp_path / "criu" / "runc.conf"
    assert runtimes.add_libdir("runc", LIB, file.parent) == f"made {file}: libdir {LIB}"
    assert runtimes.libdir_of(file) == LIB
    assert file.stat().st_mode & 0o777 == 0o644
    assert "already" in runtimes.add_libdir("runc", LIB, file.parent)
    assert list(runtimes.remove_libdir(LIB, file.parent)) == [f"removed {file}"]
    assert not list(file.parent.iterdir())


def test_what_else_is_there_stays(tmp_path: Path) -> None:
    file = tmp_path / "crun.conf"
    file.write_bytes(OTHERS)
    file.chmod(0o600)
    assert runtimes.add_libdir("crun", LIB, tmp_path).startswith(f"changed {file}")
    assert file.read_bytes().endswith(OTHERS) and runtimes.libdir_of(file) == LIB
    assert list(runtimes.remove_libdir(LIB, tmp_path))
    assert file.read_bytes() == OTHERS
    assert file.stat().st_mode & 0o777 == 0o600


def test_user_goes_on_with_a_file_that_was_made(tmp_path: Path) -> None:
    file = tmp_path / "runc.conf"
    runtimes.add_libdir("runc", LIB, tmp_path)
    with file.open("ab") as stream:
        stream.write(OTHERS)
    assert list(runtimes.remove_libdir(LIB, tmp_path)) == [
        f"removed the line libdir {LIB} from {file}"
    ]
    assert file.read_bytes() == OTHERS


def test_lines_of_others_are_not_removed(tmp_path: Path) -> None:
    file = tmp_path / "runc.conf"
    file.write_text(f"libdir {LIB}\n")
    assert not list(runtimes.remove_libdir(LIB, tmp_path))
    runtimes.add_libdir("crun", LIB, tmp_path)
    assert not list(runtimes.remove_libdir(Path("/opt/other"), tmp_path))


def test_another_directory_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "runc.conf"
    file.write_text("libdir /opt/cuda\n")
    with pytest.raises(runtimes.SettingsError, match="--libdir /opt/cuda"):
        runtimes.add_libdir("runc", LIB, tmp_path)
    assert file.read_text() == "libdir /opt/cuda\n"


def test_default_directory(tmp_path: Path) -> None:
    """It needs no setting, unless one names another directory."""
    assert "needs no setting" in runtimes.add_libdir("runc", DEFAULT_LIB, tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "runc.conf").write_text("libdir /opt/cuda\n")
    with pytest.raises(runtimes.SettingsError, match="--libdir /opt/cuda"):
        runtimes.add_libdir("runc", DEFAULT_LIB, tmp_path)


def test_installed_lib(tmp_path: Path) -> None:
    """Settings tell where the plugin is that is not in the default directory."""
    default, other = tmp_path / "default", tmp_path / "other"
    (tmp_path / "runc.conf").write_text("libdir /nowhere\n")
    (tmp_path / "crun.conf").write_text(f"libdir {other}\n")
    assert runtimes.installed_lib(default, tmp_path) == default
    for directory in (other, default):
        directory.mkdir()
        (directory / PARTS[0]).touch()
        assert runtimes.installed_lib(default, tmp_path) == directory


@pytest.mark.parametrize("path", ["/opt/with blank", "/opt/#1"])
def test_path_that_cannot_be_written(tmp_path: Path, path: str) -> None:
    with pytest.raises(runtimes.SettingsError, match="cannot name"):
        runtimes.add_libdir("runc", Path(path), tmp_path)


def test_settings_that_others_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "writers", lambda paths: [f"{tmp_path} is writable by everyone"])
    with pytest.raises(runtimes.SettingsError, match=r"writable by everyone.*chmod go-w"):
        runtimes.add_libdir("runc", LIB, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("hands_file", "there", "expected"),
    [
        (True, [], "crun.conf"),
        (True, ["runc.conf"], "runc.conf"),  # which a new crun.conf would hide
        (True, ["runc.conf", "crun.conf"], "crun.conf"),
        (False, ["runc.conf", "crun.conf"], "default.conf"),
    ],
)
def test_file_of_crun(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    hands_file: bool,
    there: list[str],
    expected: str,
) -> None:
    monkeypatch.setattr(runtimes, "crun_hands_file", lambda: hands_file)
    for name in there:
        (tmp_path / name).touch()
    assert runtimes.settings_file("crun", tmp_path).name == expected
    assert runtimes.settings_file("runc", tmp_path).name == "runc.conf"


OLD_LIBRARY = object()
NEW_LIBRARY = SimpleNamespace(criu_set_config_file=print)


@pytest.mark.parametrize(
    ("crun", "library", "expected"),
    [
        ("1.28", NEW_LIBRARY, True),
        ("1.28", OLD_LIBRARY, False),
        ("1.25.1", NEW_LIBRARY, False),
        ("1.28", None, True),  # cannot checkpoint yet
        ("", NEW_LIBRARY, True),  # is not there yet
    ],
)
def test_crun_hands_file(
    monkeypatch: pytest.MonkeyPatch, crun: str, library: object, expected: bool
) -> None:
    said = f"crun version {crun}\ncommit: 0\n" if crun else ""
    monkeypatch.setattr(runtimes, "said_of_itself", lambda name: said)
    monkeypatch.setattr(runtimes, "libcriu", lambda: library)
    assert CRUN_HANDS_FILE() is expected


def test_said_of_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "crun"
    program.write_text("#!/bin/sh\necho version 1.21\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(programs, "SBIN", "")
    assert runtimes.said_of_itself("crun") == "version 1.21\n"
    program.write_text("#!/bin/sh\necho version 1.21\nexit 1\n")
    assert runtimes.said_of_itself("crun") == ""
    assert runtimes.said_of_itself("runc") == ""


@pytest.mark.parametrize(
    "line", ["libdir /opt/criu # plugins", "libdir=/opt/criu", " libdir /opt/criu"]
)
def test_forms_of_a_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "runc.conf").write_text(f"libdir /first\n{line}\n")
    assert runtimes.libdir_of(tmp_path / "runc.conf") == LIB


def test_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        runtimes.add_libdir("runc", LIB, tmp_path)
    assert not list(tmp_path.iterdir())


def test_setting(tmp_path: Path) -> None:
    file = tmp_path / "default.conf"
    assert runtimes.setting(file, "network-lock") == ""
    file.write_text("# network-lock skip\nnetwork-lock=nftables\n")
    assert runtimes.setting(file, "network-lock") == "nftables"
