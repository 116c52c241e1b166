"""The ground that every integration test stands on."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import pytest

from ..conftest import THIS_CRIU
from ..coverage_table import COLUMNS, ITEMS, OUTCOMES, PROPERTY
from .harness import kernel
from .harness import scenario as harness
from .harness.container import Container
from .harness.criu import has_inet_sockets, has_network_namespaces, has_plugin
from .harness.engines import Engines, prepared_engines, sets_groups
from .harness.opened import Opened
from .harness.placement import SHAPES, Placement, Shape, user_namespace
from .harness.scenario import Scenario


def pytest_addoption(parser: pytest.Parser) -> None:
    """With --attached the tests are measured by what they imitate.

    Nothing is unmounted and CRIU is left alone, so a test of what is restored must pass as well;
    tests of what is refused cannot.
    """
    parser.addoption("--attached", action="store_true", help="leave mounts attached, plain CRIU")
    parser.addoption("--userns", action="store_true", help="user namespaces where there can be")
    parser.addoption("--in-trees", action="store_true", help="anonymous mounts, not detached ones")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what cannot run here; where nothing may be skipped, let it fail instead."""
    if os.environ.get("CRIU_DETACHED_NO_SKIP"):
        return
    for item in items:
        if os.geteuid() or not shutil.which("criu"):
            item.add_marker(pytest.mark.skip(reason="needs root and criu"))
        elif config.getoption("--attached"):
            if item.get_closest_marker("detached"):
                item.add_marker(pytest.mark.skip(reason="has no attached counterpart"))
        elif not has_plugin() and not item.get_closest_marker("plain"):
            item.add_marker(pytest.mark.skip(reason="the plugin is not built"))


def pytest_configure(config: pytest.Config) -> None:
    """Name the markers, and part this run from others."""
    config.addinivalue_line("markers", "detached: has no counterpart with attached mounts")
    config.addinivalue_line("markers", "plain: runs CRIU without the plugin only")
    config.addinivalue_line(
        "markers", "covers(*items, outcome='restored', column=None): cells of the coverage table"
    )
    # Runs side by side have a /tmp each, with the same names in it, and share the loop devices:
    # losetup knows a file that is gone by its name alone.
    if config.option.basetemp is None:
        config.option.basetemp = Path(tempfile.gettempdir(), f"tests-{os.getpid()}")
    # nohup(1) has it ignored: what is started on a terminal would not end with that.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def runner(record_testsuite_property: Callable[[str, str], None]) -> None:
    """Mounts that the tests make are seen by the tests alone and end with them."""
    record_testsuite_property("kernel", ".".join(platform.release().split(".")[:2]))
    if not os.geteuid():
        harness.prepare_runner()


@pytest.fixture
def used_placements() -> set[Placement]:
    """Where the scenarios of a test were placed."""
    return set()


@pytest.fixture(autouse=True)
def coverage(request: pytest.FixtureRequest, used_placements: set[Placement]) -> Iterator[None]:
    """Note for the coverage table what a test shows: its marker says what, its placement where."""
    yield
    markers = list(request.node.iter_markers("covers"))
    if not markers or request.config.getoption("--attached"):
        return
    columns = {column_of(placement) for placement in used_placements}
    for marker in markers:
        column = marker.kwargs.get("column") or ", ".join(sorted(columns))
        outcome = marker.kwargs.get("outcome", "restored")
        assert column in COLUMNS, f"covers: {column!r} is no column, say column="
        assert outcome in OUTCOMES and ITEMS.issuperset(marker.args), f"not known: {marker}"
        for item in marker.args:
            request.node.user_properties.append((PROPERTY, f"{item} {column} {outcome}"))


def _own_namespace(placement: Placement = Placement.HOST, *_: Any, **__: Any) -> bool:
    return placement.own_namespace


def column_of(placement: Placement) -> str:
    """The column of the coverage table that a placement stands for."""
    inside = placement in (Placement.NAMESPACE, Placement.NAMESPACE_TMPFS)
    return "namespace" if inside else "host"


class MakeScenario(Protocol):
    """Makes a scenario that ends with its test."""

    def __call__(self, *args: Any, **kwargs: Any) -> Scenario: ...


@pytest.fixture
def scenario(
    pytestconfig: pytest.Config, used_placements: set[Placement]
) -> Iterator[MakeScenario]:
    """Makes scenarios; their processes and mounts are gone after the test."""
    with ExitStack() as stack:

        def make(*args: Any, **kwargs: Any) -> Scenario:
            if pytestconfig.getoption("--attached"):
                kwargs["attached"] = True
            elif pytestconfig.getoption("--in-trees"):
                kwargs["in_trees"] = True
            if pytestconfig.getoption("--userns") and _own_namespace(*args, **kwargs):
                kwargs["userns"] = True
            made = stack.enter_context(Scenario(*args, **kwargs))
            used_placements.add(made.ground.placement)
            return made

        yield make


@pytest.fixture
def anonymous_mounts() -> None:
    """What a test needs that tells anonymous mounts from detached ones."""
    tree = kernel.open_tree(-100, "/", kernel.OPEN_TREE_CLONE)
    try:
        flags = kernel.OPEN_TREE_CLONE | kernel.AT_EMPTY_PATH
        os.close(kernel.open_tree(tree, "", flags))
    except OSError:
        pytest.skip("this kernel (before 6.15) clones no anonymous mount")
    finally:
        os.close(tree)


@pytest.fixture
def mapped_ids(tmp_path: Path) -> None:
    """What a test needs that maps the ids of a tmpfs."""
    kernel.mount("ids", tmp_path, "tmpfs")
    tree = kernel.open_tree(-100, str(tmp_path), kernel.OPEN_TREE_CLONE)
    try:
        with user_namespace("0 0 1") as userns:
            kernel.mount_setattr_idmap(tree, userns)
    except OSError:
        pytest.skip("this kernel (before 6.3) maps no ids of a tmpfs")
    finally:
        os.close(tree)
        kernel.umount2(tmp_path)


@pytest.fixture
def inet_sockets() -> None:
    """What a test needs that has internet sockets dumped."""
    if not has_inet_sockets():
        pytest.skip("this CRIU (before 4.2) can't dump internet sockets on Linux 6.16 and newer")


@pytest.fixture(scope="session")
def engines(runner: None) -> Iterator[Engines]:
    """Container engines, with what they keep in directories of their own."""
    with prepared_engines() as prepared:
        yield prepared


class MakeContainer(Protocol):
    """Makes a container of a named engine that ends with its test."""

    def __call__(self, engine: str, *args: Any, **kwargs: Any) -> Container: ...


@pytest.fixture
def container(
    pytestconfig: pytest.Config, engines: Engines, used_placements: set[Placement]
) -> Iterator[MakeContainer]:
    """Makes containers, as scenario makes scenarios."""
    with ExitStack() as stack:

        def make(engine: str, *args: Any, **kwargs: Any) -> Container:
            if not has_network_namespaces():
                pytest.skip(f"{THIS_CRIU}(before 4.2) dumps no network namespace on Linux 7.1")
            if sets_groups(engine):
                pytest.skip(f"{THIS_CRIU}has no settings from crun and sets groups of version 1")
            if pytestconfig.getoption("--attached"):
                kwargs["attached"] = True
            made = stack.enter_context(Container(engines.get(engine), *args, **kwargs))
            used_placements.add(made.ground.placement)
            return made

        yield make


@pytest.fixture
def secret(tmp_path: Path) -> Iterator[tuple[Path, Opened]]:
    """A directory of the host's with the names of the container's, and who opens them."""
    (tmp_path / "secret" / "dir").mkdir(parents=True)
    for name in ("file", "inner", "dir/inner"):
        (tmp_path / "secret" / name).write_text("the host's secret\n")
    opened = Opened([tmp_path / "secret", tmp_path / "secret" / "dir"])
    yield tmp_path / "secret", opened
    opened.close()


@pytest.fixture(params=[Placement.HOST, Placement.NAMESPACE], ids=lambda p: p.value)
def placement(request: pytest.FixtureRequest) -> Placement:
    """The two placements that matter to most subjects."""
    value: Placement = request.param
    return value


@pytest.fixture(params=list(Placement), ids=lambda p: p.value)
def every_placement(request: pytest.FixtureRequest) -> Placement:
    """All placements, for the few tests whose subject is where things are."""
    value: Placement = request.param
    return value


@pytest.fixture(params=SHAPES, ids=lambda s: s.name)
def shape(request: pytest.FixtureRequest) -> Shape:
    """A directory, a subdirectory, a single file."""
    value: Shape = request.param
    return value
