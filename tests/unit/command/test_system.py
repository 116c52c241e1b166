"""What the kernel has of what the plugin needs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from criu_detached.command import system
from criu_detached.command.line import FAIL, OK, WARN


def fake_kernel(by_fd: bool, walk: Callable[[], Iterator[int]]) -> tuple[Any, ...]:
    def works(*_: object) -> int:
        return os.open("/", os.O_PATH)

    kernel = SimpleNamespace(
        O_PATH=os.O_PATH,
        RESOLVE_BENEATH=8,
        OPEN_TREE_CLOEXEC=os.O_CLOEXEC,
        openat2=works,
        open_tree=works,
        mount_setattr=lambda *_: None,
    )
    namespaces = SimpleNamespace(mount_ns_ids=walk)
    return kernel, namespaces, SimpleNamespace(has_by_fd=lambda: by_fd)


def no_walk() -> Iterator[int]:
    yield from (os.dup(fd) for fd in (-1,))  # fails with OSError


@pytest.mark.parametrize(
    ("by_fd", "walk", "state", "text"),
    [
        (True, no_walk, OK, "found by STATMOUNT_BY_FD"),
        (False, lambda: iter([1]), OK, "a walk over all mount namespaces"),
        (False, no_walk, WARN, "the mountinfo of every process"),
    ],
)
def test_kernel_paths(
    monkeypatch: pytest.MonkeyPatch,
    by_fd: bool,
    walk: Callable[[], Iterator[int]],
    state: str,
    text: str,
) -> None:
    monkeypatch.setattr(system, "_kernel", lambda: fake_kernel(by_fd, walk))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    line = system.check_kernel()
    assert line.state == state and text in line.text


def test_kernel_for_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "_kernel", lambda: fake_kernel(False, no_walk))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "run this as root" in system.check_kernel().text


def test_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = fake_kernel(True, no_walk)
    monkeypatch.setattr(system, "_kernel", lambda: modules)
    assert system.check_calls().state == OK

    def refuse(*_: object) -> int:
        raise OSError(38, "mount_setattr: Function not implemented")

    modules[0].mount_setattr = refuse
    line = system.check_calls()
    assert line.state == FAIL and "mount_setattr (Linux 5.12)" in line.text


def test_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> Any:
        raise ImportError("No module named 'criu_detached._kernel'")

    monkeypatch.setattr(system, "_kernel", absent)
    for line in (system.check_kernel(), system.check_calls()):
        assert line.state == FAIL and "criu-detached install" in line.text
