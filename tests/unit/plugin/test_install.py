"""What ``make install`` and ``make uninstall`` put where; the build itself is stood in for."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "plugin"))

import build
import install

LIB = "/usr/lib/criu"


def fake_build(output: Path) -> None:
    """Writes what a build does, as a checkout with a careless umask would have it."""
    (output / "criu_detached" / "lib").mkdir(parents=True)
    (output / "criu_detached.so").touch()
    (output / "criu_detached" / "lib" / "entry.py").touch()
    (output / "criu_detached" / "lib" / "entry.py").chmod(0o664)
    launcher = output / "criu_detached" / "criu-detached"
    launcher.touch()
    launcher.chmod(0o775)


def failing_build(output: Path) -> None:
    fake_build(output)
    raise build.BuildError("no C compiler 'cc'")


@pytest.fixture
def dest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where to install, with a build that takes no time."""
    monkeypatch.setattr(build, "build", fake_build)
    monkeypatch.setattr(os, "umask", lambda mask: mask)  # it is the test runner's too
    return tmp_path / "dest"


def run(dest: Path, *options: str) -> int:
    return install.main(["--destdir", str(dest), "--prefix", "/usr", *options])


def listing(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


def test_install(dest: Path) -> None:
    assert run(dest) == 0
    lib = dest / "usr/lib/criu"
    assert listing(lib) == {
        "criu_detached.so",
        "criu_detached",
        "criu_detached/criu-detached",
        "criu_detached/lib",
        "criu_detached/lib/entry.py",
    }
    # The link leads to the installed system.
    command = dest / "usr/bin/criu-detached"
    assert os.readlink(command) == f"{LIB}/criu_detached/criu-detached"


def test_modes(dest: Path) -> None:
    run(dest)
    lib = dest / "usr/lib/criu"
    assert not [path for path in lib.rglob("*") if path.stat().st_mode & 0o022]
    assert (lib / "criu_detached/criu-detached").stat().st_mode & 0o777 == 0o755
    assert (lib / "criu_detached/lib/entry.py").stat().st_mode & 0o777 == 0o644


def test_again_replaces(dest: Path) -> None:
    run(dest)
    before = listing(dest)
    (dest / "usr/lib/criu/criu_detached/stale.py").touch()
    assert run(dest) == 0
    assert listing(dest) == before


def test_failed_build_changes_nothing(
    dest: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(dest)
    before = listing(dest)
    monkeypatch.setattr(build, "build", failing_build)
    assert run(dest) == 1
    assert capsys.readouterr().err == "install: no C compiler 'cc'\n"
    assert listing(dest) == before


@pytest.mark.parametrize("moves_that_work", range(4))
def test_failed_move_changes_nothing(
    dest: Path, monkeypatch: pytest.MonkeyPatch, moves_that_work: int
) -> None:
    run(dest)
    (dest / "usr/lib/criu/criu_detached/old").touch()
    before = listing(dest)
    move: Callable[[Path, Path, list[tuple[Path, Path]]], None] = install._move

    def failing(source: Path, destination: Path, moves: list[tuple[Path, Path]]) -> None:
        if len(moves) == moves_that_work:
            raise OSError(28, "No space left on device")
        move(source, destination, moves)

    monkeypatch.setattr(install, "_move", failing)
    assert run(dest) == 1
    assert listing(dest) == before


def test_command_of_another(dest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = dest / "usr/bin/criu-detached"
    command.parent.mkdir(parents=True)
    command.write_text("mine\n")
    assert run(dest) == 1
    assert f"{command} is another program" in capsys.readouterr().err
    assert run(dest, "--uninstall") == 0
    assert command.read_text() == "mine\n"


def test_uninstall(dest: Path) -> None:
    run(dest)
    assert run(dest, "--uninstall") == 0
    assert listing(dest) == {"usr", "usr/bin", "usr/lib"}
    assert run(dest, "--uninstall") == 0


def test_uninstall_of_nothing(dest: Path) -> None:
    assert run(dest, "--uninstall") == 0
    assert not dest.exists()


def test_other_plugins_stay(dest: Path) -> None:
    other = dest / "usr/lib/criu/cuda_plugin.so"
    other.parent.mkdir(parents=True)
    other.write_text("cuda\n")
    run(dest)
    assert run(dest, "--uninstall") == 0
    assert listing(other.parent) == {"cuda_plugin.so"}
    assert other.read_text() == "cuda\n"


def test_libdir(dest: Path) -> None:
    assert run(dest, "--libdir", "/opt/criu/lib") == 0
    shim = dest / "opt/criu/lib/criu_detached.so"
    assert shim.exists()
    assert run(dest, "--libdir", "/opt/criu/lib", "--uninstall") == 0
    assert not shim.parent.exists()


def test_settings_are_refused_first(dest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is installed that no runtime would load."""
    settings = dest / "etc/criu"
    settings.mkdir(parents=True)
    (settings / "runc.conf").write_text("libdir /opt/cuda\n")
    assert run(dest, "--runtime", "runc") == 1
    assert "install with --libdir /opt/cuda" in capsys.readouterr().err
    assert listing(dest) == {"etc", "etc/criu", "etc/criu/runc.conf"}


def test_writable_target_is_refused(dest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dest.mkdir()
    dest.chmod(0o777)
    target = dest / "not" / "there"
    assert install.main(["--prefix", str(dest), "--libdir", str(target)]) == 1
    refused = capsys.readouterr().err
    assert f"{dest} " in refused and "criu runs as root the code" in refused
    assert not list(dest.iterdir())


def test_paths_must_be_absolute(dest: Path) -> None:
    with pytest.raises(SystemExit):
        run(dest, "--libdir", "lib")
