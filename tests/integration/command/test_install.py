"""``make install``: CRIU finds the plugin by itself, and ``make uninstall`` takes it away."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..conftest import MakeContainer, MakeScenario
from ..harness import kernel
from ..harness.engines import CRIU_SETTINGS
from ..harness.placement import CONTENT, Placement
from ..harness.programs import hold_file

pytestmark = [
    pytest.mark.detached,
    pytest.mark.native_only("compilers take minutes under emulation, and no kernel matters here"),
]

CHECKOUT = Path(__file__).resolve().parents[3]
DEFAULT = Path("/usr/lib/criu")


def make(target: str, **variables: str | Path) -> subprocess.CompletedProcess[str]:
    """Run make as a user does."""
    settings = [f"{name}={value}" for name, value in variables.items()]
    command = ["make", "--silent", "-C", str(CHECKOUT), target, *settings]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installation into a DESTDIR, as for a package."""
    destdir = tmp_path_factory.mktemp("install") / "dest"
    done = make("install", DESTDIR=destdir, PREFIX="/usr")
    assert done.returncode == 0, done.stdout
    return destdir


@pytest.fixture
def default_dir(tmp_path: Path) -> Iterator[Path]:
    """CRIU's default plugin directory, empty and this test's own."""
    kernel.mount("plugins", DEFAULT, "tmpfs", 0, "mode=755")
    yield DEFAULT
    kernel.umount2(DEFAULT, kernel.MNT_DETACH)


def listing(directory: Path) -> set[str]:
    """All that is in a directory."""
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


def test_destdir(staged: Path) -> None:
    """The place that it was built in shows nowhere."""
    assert {path.name for path in (staged / "usr").iterdir()} == {"bin", "lib"}
    lib = staged / "usr/lib/criu"
    assert {path.name for path in lib.iterdir()} == {"criu_detached", "criu_detached.so"}
    launcher = (lib / "criu_detached/criu-detached").read_text()
    assert str(staged) not in launcher and str(DEFAULT) not in launcher
    command = os.readlink(staged / "usr/bin/criu-detached")
    assert command == str(DEFAULT / "criu_detached/criu-detached")
    assert not [path for path in lib.rglob("*") if path.stat().st_mode & 0o022]


def test_criu_finds_it(scenario: MakeScenario, staged: Path, default_dir: Path) -> None:
    """No --lib: the packaged files, where the package puts them."""
    kernel.bind(staged / "usr/lib/criu", default_dir)
    try:
        held = scenario(Placement.HOST).start(hold_file)
        held.cycle(plugin=False)
        assert held.ask() == CONTENT
        command = [str(default_dir / "criu_detached/criu-detached"), "check"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "criu finds it by itself" in done.stdout
    finally:
        kernel.umount2(default_dir, kernel.MNT_DETACH)


def test_in_place(scenario: MakeScenario, default_dir: Path, tmp_path: Path) -> None:
    """Installed for real, beside a file of another, and uninstalled."""
    (default_dir / "README").write_text("not ours\n")
    prefix = tmp_path / "prefix"
    done = make("install", PREFIX=prefix)
    assert done.returncode == 0, done.stdout
    installed = listing(default_dir)

    held = scenario(Placement.HOST).start(hold_file)
    held.cycle(plugin=False)
    assert held.ask() == CONTENT

    # An update that fails leaves what is there.
    failed = subprocess.run(
        ["make", "--silent", "-C", str(CHECKOUT), "install", f"PREFIX={prefix}"],
        env={**os.environ, "CC": "false"},
        capture_output=True,
        text=True,
    )
    assert failed.returncode != 0 and "the C compiler failed" in failed.stderr
    assert listing(default_dir) == installed

    for _ in range(2):
        done = make("uninstall", PREFIX=prefix)
        assert done.returncode == 0, done.stdout
        assert listing(default_dir) == {"README"}
        assert listing(prefix) == {"bin"}
    held.dump(plugin=False).failed("Can't lookup mount")


def test_writable_directory(default_dir: Path, tmp_path: Path) -> None:
    default_dir.chmod(0o777)
    done = make("install", PREFIX=tmp_path / "prefix")
    assert done.returncode != 0
    assert f"{DEFAULT} is writable by everyone" in done.stdout
    assert not listing(default_dir) and not (tmp_path / "prefix").exists()


def test_uninstall_from_destdir(staged: Path, tmp_path: Path) -> None:
    copy = tmp_path / "dest"
    shutil.copytree(staged, copy, symlinks=True)
    done = make("uninstall", DESTDIR=copy, PREFIX="/usr")
    assert done.returncode == 0, done.stdout
    assert listing(copy) == {"usr", "usr/bin", "usr/lib"}


@pytest.fixture(scope="module")
def installed_by_pip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The command criu-detached in an environment; what it was installed from is gone."""
    place = tmp_path_factory.mktemp("pip")
    copy, environment = place / "checkout", place / "environment"
    names = ("criu_detached", "plugin", "pyproject.toml", "README.md", "LICENSE")
    copy.mkdir()
    for name in names:
        source = CHECKOUT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, copy / name)
    run("python3", "-m", "venv", "--system-site-packages", str(environment))
    pip = [str(environment / "bin/python3"), "-m", "pip", "install", "--quiet"]
    run(*pip, "--no-build-isolation", "--no-deps", "--no-index", str(copy))
    shutil.rmtree(copy)
    return str(environment / "bin/criu-detached")


def test_pip(default_dir: Path, tmp_path: Path, installed_by_pip: str) -> None:
    """The command installs the plugin for crun, finds it where the settings say, removes it."""
    command, lib = installed_by_pip, tmp_path / "lib"
    kernel.mount("settings", Path("/etc/criu"), "tmpfs", 0, "mode=755")
    try:
        said = run(command, "show", str(tmp_path), status=1)
        assert "install it" in said and len(said.splitlines()) == 1
        said = run(command, "install", "--libdir", str(lib), "--runtime", "crun")
        found = re.search(rf"made (/etc/criu/(?:crun|default).conf): libdir {lib}\n", said)
        assert found, said
        settings = Path(found[1])
        said = run(command, "check")
        assert f"crun: loads the plugin from {lib} ({settings} says so) with /usr/sbin/criu" in said
        if settings.name == "crun.conf":
            assert f"runc: does not load the plugin: it is not in {default_dir}" in said
        assert str(tmp_path) in run(command, "show", str(tmp_path), status=1)
        run(command, "uninstall", "--libdir", str(lib))
        assert not settings.exists() and not lib.exists()
    finally:
        kernel.umount2(Path("/etc/criu"), kernel.MNT_DETACH)


def test_pip_container(container: MakeContainer, tmp_path: Path, installed_by_pip: str) -> None:
    """What else runc has in its settings stays, and is there afterwards."""
    settings = CRIU_SETTINGS / "runc.conf"
    held = container("runc", Placement.HOST_SOURCE).start(hold_file)
    before = settings.read_text()
    where = ["--libdir", str(tmp_path / "lib")]
    said = run(installed_by_pip, "install", *where, "--runtime", "runc")
    assert f"changed {settings}: libdir" in said
    held.cycle(plugin=False)
    assert held.ask() == CONTENT
    assert "bind source" in run(installed_by_pip, "show", str(held.images))
    assert f"removed the line libdir {where[1]}" in run(installed_by_pip, "uninstall", *where)
    assert settings.read_text() == before
    held.checkpoint(plugin=False).failed("Can't lookup mount")


def run(*command: str, status: int = 0) -> str:
    """Run a command that has to end so; returns what it said."""
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == status, done.stdout
    return done.stdout
