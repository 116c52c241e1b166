"""The settings of container runtimes: what install writes, uninstall removes, and check reads."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from criu_detached.command import check, runtimes
from criu_detached.command.check import OK, WARN

LIB = Path("/opt/criu")
OTHERS = b"network-lock nftables\n# libdir /not/this\ntcp-established"  # no newline at its end


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only root may write here, and crun is a new one."""
    monkeypatch.setattr(check, "writers", lambda paths: [])
    monkeypatch.setattr(runtimes, "_version", lambda name: (1, 28))


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


@pytest.mark.parametrize("path", ["/opt/with blank", "/opt/#1"])
def test_path_that_cannot_be_written(tmp_path: Path, path: str) -> None:
    with pytest.raises(runtimes.SettingsError, match="cannot name"):
        runtimes.add_libdir("runc", Path(path), tmp_path)


def test_settings_that_others_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "writers", lambda paths: [f"{tmp_path} is writable by everyone"])
    with pytest.raises(runtimes.SettingsError, match=r"writable by everyone.*chmod go-w"):
        runtimes.add_libdir("runc", LIB, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("version", "there", "expected"),
    [
        ((1, 28), [], "crun.conf"),
        ((1, 28), ["runc.conf"], "runc.conf"),  # which a new crun.conf would hide
        ((1, 28), ["runc.conf", "crun.conf"], "crun.conf"),
        ((1, 25), ["runc.conf", "crun.conf"], "default.conf"),  # it hands CRIU no file
    ],
)
def test_file_of_crun(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    version: tuple[int, int],
    there: list[str],
    expected: str,
) -> None:
    monkeypatch.setattr(runtimes, "_version", lambda name: version)
    for name in there:
        (tmp_path / name).touch()
    assert runtimes.settings_file("crun", tmp_path).name == expected
    assert runtimes.settings_file("runc", tmp_path).name == "runc.conf"


@pytest.mark.parametrize(
    "line", ["libdir /opt/criu # plugins", "libdir=/opt/criu", " libdir /opt/criu"]
)
def test_forms_of_a_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "runc.conf").write_text(f"libdir /first\n{line}\n")
    assert runtimes.libdir_of(tmp_path / "runc.conf") == LIB


@pytest.fixture
def ground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with runc, crun, podman on runc, and the plugin in tmp_path/lib."""
    monkeypatch.setattr(runtimes, "SETTINGS", tmp_path)
    monkeypatch.setattr(runtimes.settings_file, "__defaults__", (tmp_path,))
    monkeypatch.setattr(check, "DEFAULT_LIB", tmp_path / "default")
    monkeypatch.setattr(check, "find_program", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(check, "criu_version", lambda program: "4.2.1")
    monkeypatch.setattr(runtimes, "CONTAINERS", (tmp_path / "share", tmp_path))
    (tmp_path / "containers.conf").write_text('[engine]\nruntime = "/usr/bin/runc"\n')
    monkeypatch.setattr(runtimes, "_has_libcriu", lambda: True)
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / check.PARTS[0]).touch()
    return tmp_path


def test_check(ground: Path) -> None:
    (ground / "runc.conf").write_text(f"libdir {ground}/lib\n")
    (ground / "crun.conf").touch()
    runc, crun, podman = runtimes.check_runtimes(ground / "lib", "/usr/sbin/criu")
    assert runc.state == OK
    assert runc.text == (
        f"loads the plugin from {ground}/lib ({ground}/runc.conf says so)"
        " with /usr/sbin/criu, version 4.2.1"
    )
    assert crun.state == WARN
    assert f"does not load the plugin: it is not in {ground}/default (CRIU's default)" in crun.text
    assert podman.state == OK and podman.text.startswith("runs runc, which loads the plugin")


def test_check_default_conf(ground: Path) -> None:
    (ground / "default.conf").write_text(f"libdir {ground}/lib\n")
    assert [line.state for line in runtimes.check_runtimes(ground / "lib", None)] == [OK] * 3


def test_check_without_library_of_criu(ground: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "_has_libcriu", lambda: False)
    _, crun, _ = runtimes.check_runtimes(ground / "lib", None)
    assert crun.state == WARN and "libcriu.so.2" in crun.text


def test_runtime_of_podman(ground: Path) -> None:
    assert runtimes.podman_runtime() == "runc"
    (ground / "containers.conf.d").mkdir()
    (ground / "containers.conf.d" / "10.conf").write_text('[engine]\nruntime = "kata"\n')
    assert runtimes.podman_runtime() == "kata"
    *_, podman = runtimes.check_runtimes(ground / "lib", None)
    assert podman.state == WARN and podman.text.startswith("runs kata")
    (ground / "containers.conf.d" / "10.conf").write_text("[engine")
    (ground / "containers.conf").write_text("")
    assert runtimes.podman_runtime() == "crun"


def test_check_without_runtimes(ground: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "find_program", lambda name: None)
    assert not list(runtimes.check_runtimes(ground / "lib", None))


def test_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        runtimes.add_libdir("runc", LIB, tmp_path)
    assert not list(tmp_path.iterdir())
