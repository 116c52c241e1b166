"""What processes have open."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from criu_detached.kernel import tasks

from .. import support


def test_fd_of_a_process(tmp_path: Path) -> None:
    """The same open file, and not another one of it."""
    (tmp_path / "file").write_text("content")
    with support.opened(tmp_path / "file") as fd:
        found = tasks.fd_of_process(os.getpid(), fd)
        os.lseek(fd, 3, os.SEEK_SET)
        assert os.lseek(found, 0, os.SEEK_CUR) == 3
        assert not os.get_inheritable(found)
        os.close(found)
        with pytest.raises(OSError, match="pidfd_getfd"):
            tasks.fd_of_process(os.getpid(), 12345)


def test_has_peer(tmp_path: Path) -> None:
    name = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(name)
        server.listen()
        assert not tasks.has_peer(name.encode())
        client.connect(name)
        assert tasks.has_peer(name.encode())
        assert tasks.has_peer(b"/socket")
        assert not tasks.has_peer(b"/sock")
        assert not tasks.has_peer(b"x" * 200)
