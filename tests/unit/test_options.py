"""Settings: where they come from, which place wins, and what is malformed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from criu_detached import options
from criu_detached.errors import DetachedError
from criu_detached.options import DEFAULT_GHOST_LIMIT, IMAGES_FILE, Options, parse_size


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the whole machine, which is not there yet."""
    (tmp_path / "etc").mkdir()
    path = tmp_path / "etc" / "criu-detached.conf"
    monkeypatch.setattr(options, "SYSTEM_FILE", str(path))
    return path


@pytest.fixture
def images(system: Path, tmp_path: Path) -> Path:
    """The file in the image directory, which is not there yet."""
    return tmp_path / IMAGES_FILE


def limit(directory: int, *plugin_options: bytes) -> int:
    """The limit that is in force."""
    return Options(directory, list(plugin_options)).ghost_limit


def test_places() -> None:
    assert options.SYSTEM_FILE == "/etc/criu/criu-detached.conf"
    assert IMAGES_FILE == "criu-detached.conf"


def test_default(directory: int, images: Path) -> None:
    assert limit(directory) == DEFAULT_GHOST_LIMIT == 1 << 20


def test_later_places_win(directory: int, system: Path, images: Path) -> None:
    system.write_text("ghost-limit 1\n")
    assert limit(directory) == 1
    images.write_text("ghost-limit 2\n")
    assert limit(directory) == 2
    assert limit(directory, b"--criu_detached.ghost-limit=3") == 3
    images.unlink()
    assert limit(directory, b"--criu_detached.ghost-limit=3") == 3


def test_later_lines_win(directory: int, images: Path) -> None:
    images.write_text("ghost-limit 1\nghost-limit 2\n")
    assert limit(directory) == 2
    twice = [b"--criu_detached.ghost-limit=%d" % size for size in (5, 4)]
    assert limit(directory, *twice) == 4


@pytest.mark.parametrize(
    "text",
    [
        "ghost-limit 5",
        "  ghost-limit\t 5 \n",
        "# a comment\n\n   \nghost-limit 5 # and why\n",
        "#ghost-limit 6\nghost-limit 5#\n",
        "ghost-limit 5\r\n",
    ],
)
def test_lines(directory: int, images: Path, text: str) -> None:
    images.write_bytes(text.encode())
    assert limit(directory) == 5


@pytest.mark.parametrize("text", ["", "\n", "# ghost-limit 5", "#\xff\n"])
def test_no_lines(directory: int, images: Path, text: str) -> None:
    images.write_bytes(text.encode("latin-1"))
    assert limit(directory) == DEFAULT_GHOST_LIMIT


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (b"0", 0),
        (b"1048576", 1 << 20),
        (b"1K", 1 << 10),
        (b"3m", 3 << 20),
        (b"2G", 2 << 30),
        (b"007", 7),
        (b"999999999999999", 999_999_999_999_999),
    ],
)
def test_size(text: bytes, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [b"", b"K", b"-1", b"1.5M", b"1 M", b"1MB", b"1T", b"0x10", b"lots", b"1" * 16, "1²".encode()],
)
def test_no_size(directory: int, images: Path, text: bytes) -> None:
    """Said where it was written, when settings are read, not when the first is used."""
    with pytest.raises(DetachedError, match="is no size"):
        parse_size(text)
    with pytest.raises(DetachedError, match="is no size"):
        Options(directory, [b"--criu_detached.ghost-limit=" + text])
    images.write_bytes(b"ghost-limit " + text)
    with pytest.raises(DetachedError, match="is no size"):
        Options(directory, [])


@pytest.mark.parametrize("name", ["ghost_limit", "ghost-limit=5", "Ghost-limit", "\x1b[31m"])
def test_unknown_name(directory: int, system: Path, images: Path, name: str) -> None:
    for path in (system, images):
        path.write_text(f"{name} 5\n")
        with pytest.raises(
            DetachedError, match=r"criu-detached.conf: there is no setting"
        ) as error:
            Options(directory, [])
        assert str(error.value).isprintable()
        path.unlink()
    with pytest.raises(DetachedError, match="--plugin-option: there is no setting"):
        Options(directory, [b"--criu_detached.x" + name.encode() + b"=5"])


@pytest.mark.parametrize(
    "option", [b"--criu_detached.ghost-limit", b"--criu_detached.ghost-limit="]
)
def test_option_without_a_value(directory: int, images: Path, option: bytes) -> None:
    with pytest.raises(DetachedError, match="is no size"):
        Options(directory, [option])


def test_options_of_other_plugins(directory: int, images: Path) -> None:
    others = [b"--amdgpu.parallel=1", b"--criu_detached_too.ghost-limit=5", b"", b"--x", b"ghost"]
    assert limit(directory, *others) == DEFAULT_GHOST_LIMIT


def test_file_that_cannot_be_read(directory: int, images: Path) -> None:
    images.mkdir()
    with pytest.raises(DetachedError, match=f"can't read {IMAGES_FILE}: Is a directory"):
        Options(directory, [])


def test_fifo(directory: int, images: Path) -> None:
    """It is not waited for."""
    os.mkfifo(images)
    assert limit(directory) == DEFAULT_GHOST_LIMIT


def test_no_fd_is_left_open(directory: int, images: Path) -> None:
    images.write_text("ghost-limit 5\n")
    before = os.listdir("/proc/self/fd")
    limit(directory)
    images.write_text("nonsense\n")
    with pytest.raises(DetachedError):
        limit(directory)
    assert os.listdir("/proc/self/fd") == before
