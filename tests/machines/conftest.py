"""The ground that a traveller stands on: this machine, and what came from the last one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ..integration.harness.engines import CRIU_SETTINGS, Engines, prepared_engines
from ..integration.harness.scenario import prepare_runner
from .luggage import CARRIED, Luggage


@pytest.fixture(scope="session", autouse=True)
def runner() -> None:
    """Mounts that the tests make are seen by the tests alone and end with them."""
    if not CARRIED.exists():
        pytest.skip("needs two machines: make test-machines")
    prepare_runner()


@pytest.fixture(scope="session")
def engines(runner: None) -> Iterator[Engines]:
    """Container engines, and settings of CRIU."""
    with prepared_engines() as prepared:
        # All groups of processes are of version 2 here. Where CRIU ignores them, crun restores the
        # first process alone into the container's, and the next checkpoint fails for the others.
        (CRIU_SETTINGS / "crun.conf").write_text("")
        yield prepared


@pytest.fixture
def luggage() -> Callable[[str], Luggage]:
    """What a traveller of that name takes along."""

    def of(name: str) -> Luggage:
        directory = CARRIED / name
        directory.mkdir(parents=True, exist_ok=True)
        return Luggage(directory)

    return of


@pytest.fixture
def settings(engines: Engines) -> Iterator[Path]:
    """The plugin's settings for the whole machine."""
    path = CRIU_SETTINGS / "criu-detached.conf"
    yield path
    path.unlink(missing_ok=True)
