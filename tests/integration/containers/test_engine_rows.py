"""What the coverage table has, held by a process in a container."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ..anonymous.test_anonymous import NEEDS_CLONES, hold_tree
from ..conftest import MakeContainer
from ..deleted.test_deleted import hold_deleted_file, hold_directories, hold_linked
from ..files.test_cwd import hold_cwd, hold_root
from ..files.test_fds import hold_each_kind
from ..files.test_flags import hold_flags
from ..files.test_in_flight import hold_in_flight
from ..files.test_locks import hold_leases, hold_locks, hold_ofd_locks
from ..files.test_mappings import hold_mappings
from ..files.test_watches import hold_watches
from ..filesystems.test_tmpfs import hold_life as hold_saved
from ..harness import kernel
from ..harness.engines import write_settings
from ..harness.placement import Bind, Placement
from ..harness.program import Program
from ..sockets.test_bound_sockets import asked_through_source, hold_echo

pytestmark = [
    pytest.mark.detached,
    pytest.mark.native_only("test_engines.py shows there how a container differs"),
]

ON_HOST = pytest.mark.parametrize(
    "placement", [Placement.NAMESPACE, Placement.HOST_SOURCE], ids=str
)


@ON_HOST
@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        (hold_each_kind, {}),
        (hold_flags, {}),
        (hold_mappings, {}),
        (hold_cwd, {}),
        (hold_root, {}),
        (hold_deleted_file, {}),
        (hold_linked, {}),
        (hold_directories, {}),
        (hold_in_flight, {"kind": 1}),
        (hold_watches, {}),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_each_row(
    container: MakeContainer, placement: Placement, program: Program, arguments: dict[str, Any]
) -> None:
    """The answer is that of a process that was left alone."""
    binds = [Bind(), Bind()]
    expected = container("runc", placement, binds).start(program, **arguments).ask()
    held = container("runc", placement, binds).start(program, **arguments).cycle()
    assert held.ask() == expected


@ON_HOST
@pytest.mark.parametrize("absolute", [True, False], ids=["absolute", "relative"])
def test_bound_socket(container: MakeContainer, placement: Placement, absolute: bool) -> None:
    """It is asked by a client on the host, through the volume."""
    held = container("runc", placement).start(hold_echo, absolute=absolute).cycle()
    assert asked_through_source(held) == "from the runner"


@pytest.fixture
def lease_settings() -> Iterator[None]:
    """By default CRIU opens each file for its build id, and waits until that has broken a lease."""
    write_settings("runc", "file-validation filesize")
    yield
    write_settings("runc")


@ON_HOST
@pytest.mark.parametrize(
    "program", [hold_locks, hold_ofd_locks, hold_leases], ids=lambda p: p.__name__
)
@pytest.mark.usefixtures("engines", "lease_settings")
def test_locks(container: MakeContainer, placement: Placement, program: Program) -> None:
    expected = container("runc", placement).start(program).ask()
    held = container("runc", placement).start(program)
    held.checkpoint("--file-locks").succeeded()
    held.restore("--file-locks").succeeded()
    assert held.ask() == expected


def test_sole_held(container: MakeContainer) -> None:
    """A volume that is mounted nowhere any more, on the host neither."""
    held = container("runc", Placement.HOST_SOURCE).start(hold_saved)
    answer = held.ask()
    kernel.umount2(held.ground.source, kernel.MNT_DETACH)
    held.cycle()
    assert held.ask() == answer


@NEEDS_CLONES
@ON_HOST
def test_tree_fd(container: MakeContainer, placement: Placement) -> None:
    held = container("runc", placement).start(hold_tree)
    answer = held.ask()
    held.cycle()
    assert held.ask() == answer
