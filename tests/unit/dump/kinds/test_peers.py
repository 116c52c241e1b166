"""Sockets outside of the dump: refused where their names do not lead to them any more."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from criu_detached.dump.kinds import peers
from criu_detached.dump.kinds.peers import check_peer
from criu_detached.dump.observe.classify import ATTACHED, DETACHED, Classifier, Kind
from criu_detached.dump.observe.machine import Machine
from criu_detached.errors import DetachedError

from ... import support


def place_nothing(_: Path) -> None:
    """The name leads nowhere."""


def place_link(path: Path) -> None:
    """A symlink, which stays inside of the root."""
    path.symlink_to("/real")


def place_other(path: Path) -> None:
    """Another file."""
    path.touch()


@pytest.mark.parametrize("detached", [True, False])
@pytest.mark.parametrize(
    ("name", "place", "leads"),
    [
        (b"/real", place_nothing, True),
        (b"/name", place_link, True),
        (b"/name", place_nothing, False),
        (b"/name", place_other, False),
        (b"real", place_nothing, False),
    ],
)
def test_names(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: bytes,
    place: Callable[[Path], None],
    leads: bool,
    detached: bool,
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(tmp_path / "real"))
    place(tmp_path / "name")
    with support.opened(tmp_path / "real", os.O_PATH) as file:
        monkeypatch.setattr(peers, "files_bound_to", lambda *_: iter([file]))
        classifier = Classifier()
        kind = Kind(DETACHED if detached else ATTACHED)
        monkeypatch.setattr(classifier, "classify", lambda _: kind)
        if leads or not detached:
            check_peer(name, str(tmp_path), classifier, Machine())
            return
        with pytest.raises(DetachedError, match="on a detached mount"):
            check_peer(name, str(tmp_path), classifier, Machine())
