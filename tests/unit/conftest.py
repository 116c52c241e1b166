"""The built package is tested, for it alone has the ``_kernel`` module."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = Path(os.environ.get("CRIU_DETACHED_PLUGINS") or ROOT / "plugins")
LIB = PLUGINS / "criu_detached" / "lib"

if not LIB.is_dir():
    raise pytest.UsageError(f"{LIB} is missing: run make plugin first")
sys.path.insert(0, str(LIB))

# Emulated processors are slow; the fixtures that are given to properties are not changed by them.
# CI asks for many examples; who waits for the tests does not.
settings.register_profile(
    "ground",
    deadline=None,
    max_examples=int(os.environ.get("CRIU_DETACHED_EXAMPLES", "20")),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("ground")

from criu_detached import kernel  # noqa: E402  (needs the path)
from criu_detached.images.recordfile import NAME  # noqa: E402  (likewise)

from . import support  # noqa: E402  (likewise)


@pytest.fixture(scope="session", autouse=True)
def _watcher() -> None:
    """The inotify instance that stays open is there before fds are counted."""
    with support.opened(Path("/"), os.O_PATH) as fd:
        kernel.is_same_inode(fd, fd)


@pytest.fixture(scope="session")
def lib() -> Path:
    """The directory that CRIU's Python imports the package from."""
    return LIB


@pytest.fixture(scope="session")
def schema(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """proto/criu_detached.proto as the protobuf package has it."""
    return support.compile_schema(ROOT / "proto", tmp_path_factory.mktemp("schema"))


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    """An fd of an empty directory, as CRIU's image directory is given."""
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of one page."""
    path = tmp_path / "tmpfs"
    path.mkdir()
    with support.mounted(path, "-t", "tmpfs", "-o", "size=4k", "small"):
        yield path


@pytest.fixture(scope="session")
def known_files_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fast path of a restore (plugin/fast/known_files.h), compiled."""
    return support.compile_known_files(ROOT / "plugin", tmp_path_factory.mktemp("known_files"))


@pytest.fixture
def known_files(
    known_files_library: Path, tmp_path_factory: pytest.TempPathFactory
) -> support.KnownFiles:
    """The fast path of a restore, with no mounts and no files."""
    return support.KnownFiles(known_files_library, tmp_path_factory.mktemp("copy"))


@pytest.fixture
def nothing_stays() -> Iterator[None]:
    """No fd, no mount, and the same namespace, root and directory as before."""
    if os.geteuid():
        pytest.skip("needs root")
    before = _state()
    yield
    assert _state() == before


def _state() -> list[object]:
    """What must not change."""
    places = [os.readlink(f"/proc/self/{name}") for name in ("ns/mnt", "root", "cwd")]
    fds = {link for link in support.open_fds().values() if not link.endswith(NAME)}
    return [fds, Path("/proc/self/mountinfo").read_text(), places]
