"""Settings: where they come from, which place wins, and what is malformed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from criu_detached import settings
from criu_detached.errors import DetachedError
from criu_detached.images.records import BIND_SOURCE, REMOUNT, SUPPLIED, BindSource, Mount
from criu_detached.settings import (
    DEFAULT_GHOST_LIMIT,
    IMAGES_FILE,
    Options,
    escape,
    parse_size,
    place_of,
)


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the whole machine, which is not there yet."""
    (tmp_path / "etc").mkdir()
    path = tmp_path / "etc" / "criu-detached.conf"
    monkeypatch.setattr(settings, "SYSTEM_FILE", str(path))
    return path


@pytest.fixture
def images(system: Path, tmp_path: Path) -> Path:
    """The file in the image directory, which is not there yet."""
    return tmp_path / IMAGES_FILE


def limit(directory: int, *plugin_options: bytes) -> int:
    """The limit that is in force."""
    return Options(directory, list(plugin_options)).ghost_limit


def test_places() -> None:
    assert settings.SYSTEM_FILE == "/etc/criu/criu-detached.conf"
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
            DetachedError, match=r"criu-detached.conf: .*: there is no such setting"
        ) as error:
            Options(directory, [])
        assert str(error.value).isprintable()
        path.unlink()
    with pytest.raises(DetachedError, match=r"--plugin-option: .*: there is no such setting"):
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
    with pytest.raises(DetachedError, match=f"{IMAGES_FILE} is no regular file"):
        Options(directory, [])


def test_long_file(directory: int, images: Path) -> None:
    """It is not cut, which would lose what comes last."""
    lines = "# a line\n" * (1 << 17) + "ghost-limit 2M\n"
    images.write_text(lines)
    with pytest.raises(DetachedError, match=f"{IMAGES_FILE} has more than 1048576 bytes"):
        Options(directory, [])
    images.write_text("#" + lines[1 - (1 << 20) :])
    assert limit(directory) == 2 << 20


def test_fifo(directory: int, images: Path) -> None:
    """It is not waited for."""
    os.mkfifo(images)
    with pytest.raises(DetachedError, match=f"{IMAGES_FILE} is no regular file"):
        limit(directory)


@pytest.mark.parametrize(("mode", "owner"), [(0o664, 0), (0o602, 0), (0o600, 1000)])
def test_others_may_write(
    directory: int, system: Path, images: Path, mode: int, owner: int
) -> None:
    """What every restore of the machine obeys is root's; what is with images belongs to them."""
    for path in (images, system):
        path.write_text("ghost-limit 1\n")
        path.chmod(mode)
        os.chown(path, owner, owner)
        if path == images:
            assert limit(directory) == 1
    with pytest.raises(DetachedError, match="could be written by others than root"):
        limit(directory)


def test_no_fd_is_left_open(directory: int, images: Path) -> None:
    images.write_text("ghost-limit 5\n")
    before = os.listdir("/proc/self/fd")
    limit(directory)
    images.write_text("nonsense\n")
    with pytest.raises(DetachedError):
        limit(directory)
    assert os.listdir("/proc/self/fd") == before


def bound(mountpoint: bytes, path: bytes = b".", **changes: Any) -> Mount:
    """A mount with a bind source."""
    source = BindSource(mountpoint=mountpoint, path=path, in_namespace=changes.pop("inside", 0))
    return Mount(**{"mnt_id": 5, "origin": BIND_SOURCE, **changes}, bind_source=source)


def supplied(directory: int, mount: Mount, *plugin_options: bytes) -> tuple[bytes, bytes] | None:
    """The path that a setting gives for a mount, and what is to be appended."""
    found = Options(directory, list(plugin_options)).source_of(mount)
    return (found[0].path, found[1]) if found else None


def test_external(directory: int, system: Path, images: Path) -> None:
    system.write_text("external 7\nexternal 8\n")
    images.write_text("external all")
    found = Options(directory, [b"--criu_detached.external=9"])
    assert (found.external_ids, found.external_all) == ({7, 8, 9}, True)


def test_source(directory: int, system: Path, images: Path) -> None:
    """It goes before all that is said of a mount, and later places win."""
    system.write_text("source 5 /first\nmap /old /new\n")
    assert supplied(directory, bound(b"/old")) == (b"/first", b".")
    images.write_text("source  5\t/second//./third/ # why\n")
    for origin in (BIND_SOURCE, REMOUNT, SUPPLIED):
        assert supplied(directory, bound(b"/old", origin=origin)) == (b"/second/third", b".")
    option = b"--criu_detached.source=5:/fourth"
    assert supplied(directory, bound(b"/old"), option) == (b"/fourth", b".")
    assert supplied(directory, bound(b"/other", mnt_id=6)) is None


@pytest.mark.parametrize(
    ("mountpoint", "path", "expected"),
    [
        (b"/old", b".", (b"/new", b".")),
        (b"/old/a", b"b/.c", (b"/new", b"a/b/.c")),
        (b"/", b"old/a", (b"/new", b"a")),
        (b"/old/longer", b"a", (b"/longest", b"a")),
        (b"/older", b".", None),
        (b"/", b".", None),
    ],
)
def test_map(
    directory: int, images: Path, mountpoint: bytes, path: bytes, expected: tuple[bytes, bytes]
) -> None:
    images.write_text("map /old /new\nmap /old/longer /longest\n")
    assert supplied(directory, bound(mountpoint, path)) == expected
    # Neither what is in a dumped namespace nor what has no bind source has a place to map.
    assert supplied(directory, bound(mountpoint, path, inside=1)) is None
    assert supplied(directory, bound(mountpoint, path, origin=REMOUNT)) is None


def test_map_of_all(directory: int, images: Path) -> None:
    option = b"--criu_detached.map=/:/mnt"
    assert supplied(directory, bound(b"/srv", b"a"), option) == (b"/mnt", b"srv/a")


@pytest.mark.parametrize("path", [b"/a b", b"/a:b#c", b"/new\nline\x1b\xff", b"/back\\slash", b"/"])
def test_escapes(directory: int, images: Path, path: bytes) -> None:
    text = escape(path)
    assert text.isprintable()
    images.write_text(f"source 5 {text}")
    assert supplied(directory, bound(b"/")) == (path, b".")
    option = f"--criu_detached.source=5:{text}".encode()
    assert supplied(directory, bound(b"/"), option) == (path, b".")


def test_place() -> None:
    assert place_of(BindSource(mountpoint=b"/", path=b".")) == b"/"
    assert place_of(BindSource(mountpoint=b"/a/", path=b".b")) == b"/a/.b"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("source", "is not a mount id and a path"),
        ("source 5", "5 is not a mount id and a path"),
        ("source 5 /a b", "/a b is not a mount id and a path"),
        ("source 5 a", "a is no absolute path"),
        ("source five /a", "five is no mount id"),
        ("source -5 /a", "-5 is no mount id"),
        ("source 12345678901 /a", "is no mount id"),
        (r"source 5 /a\000", "backslash without three octal digits"),
        (r"source 5 /a\777", "backslash without three octal digits"),
        (r"source 5 /a\04", "backslash without three octal digits"),
        (r"source 5 /a\x20", "backslash without three octal digits"),
        ("map /a", "/a is not two paths"),
        ("map a /b", "a is no absolute path"),
        ("map /a b", "b is no absolute path"),
        ("external", " is no mount id"),
        ("external 5 6", "5 6 is no mount id"),
        ("external All", "All is no mount id"),
    ],
)
def test_malformed(directory: int, images: Path, line: str, why: str) -> None:
    images.write_text(f"\n{line}\n")
    with pytest.raises(DetachedError, match=f"^{IMAGES_FILE}: .*{why}") as error:
        Options(directory, [])
    assert len(str(error.value).splitlines()) == 1


def test_symlink_beside_images(directory: int, images: Path) -> None:
    """Images are input: no other file is read, or shown in a message."""
    images.symlink_to("/etc/passwd")
    with pytest.raises(DetachedError, match="can't open"):
        Options(directory, [])
