"""Watches as fdinfo shows them, and the names that CRIU finds watched files under."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from criu_detached import kernel
from criu_detached.dump.observe.watches import Watch, all_watches, watches_of

from ... import support

ROOT = Path(__file__).resolve().parents[4]


@pytest.mark.parametrize(
    ("line", "dev", "ino", "handle"),
    [
        (
            b"inotify wd:3 ino:9e7e sdev:800013 mask:800afce ignored_mask:0"
            b" fhandle-bytes:8 fhandle-type:1 f_handle:7e9e0000640d1b6d",
            os.makedev(8, 0x13),
            0x9E7E,
            (1, bytes.fromhex("7e9e0000640d1b6d")),
        ),
        (
            b"fanotify ino:4f969 sdev:fff00 mflags:0 mask:3b ignored_mask:40000000"
            b" fhandle-bytes:8 fhandle-type:81 f_handle:69f90400c275b5b4",
            os.makedev(0, 0xFFF00),
            0x4F969,
            (0x81, bytes.fromhex("69f90400c275b5b4")),
        ),
        (b"inotify wd:1 ino:2 sdev:1f mask:2 ignored_mask:0 ", os.makedev(0, 31), 2, (0, b"")),
    ],
)
def test_lines(line: bytes, dev: int, ino: int, handle: tuple[int, bytes]) -> None:
    watch = Watch(line)
    assert (watch.dev, watch.ino, watch.handle) == (dev, ino, handle)


def test_own_watches(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with support.inotify(tmp_path, tmp_path / "file") as fd:
        found = {(watch.dev, watch.ino): watch.handle for watch in watches_of("self")}
        for path in (tmp_path, tmp_path / "file"):
            with support.opened(path) as opened:
                key = kernel.superblock_dev(opened), path.stat().st_ino
                assert found[key] == kernel.name_to_handle(opened)
        assert [watch.ino for watch in all_watches() if watch.ino == tmp_path.stat().st_ino] == []
        assert os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:inotify"


def test_process_that_ended() -> None:
    assert list(watches_of(1 << 30)) == []


@pytest.fixture
def watches_c(tmp_path: Path) -> ctypes.CDLL:
    """plugin/shim/watch_names.c as a library of its own, with access to what stat found."""
    if not shutil.which("cc"):
        pytest.skip("needs a C compiler")
    test, library = tmp_path / "test.c", tmp_path / "watch_names.so"
    test.write_text(
        '#include "shim/watch_names.h"\n'
        "int found(const char *name, uint64_t *dev, uint64_t *ino)\n"
        "{\n"
        "\tstruct stat st;\n"
        "\tif (!watch_name_stat(name, &st)) return 0;\n"
        "\t*dev = st.st_dev;\n"
        "\t*ino = st.st_ino;\n"
        "\treturn 1;\n"
        "}\n"
    )
    command = ["cc", "-O1", "-shared", "-fPIC", f"-I{ROOT / 'plugin'}", "-o", str(library)]
    subprocess.run(
        [*command, str(ROOT / "plugin" / "shim" / "watch_names.c"), str(test)], check=True
    )
    return ctypes.CDLL(str(library))


def test_names(watches_c: ctypes.CDLL) -> None:
    dev, ino = ctypes.c_uint64(), ctypes.c_uint64()

    def stat(name: bytes) -> tuple[int, int] | None:
        found = watches_c.found(name, ctypes.byref(dev), ctypes.byref(ino))
        return (dev.value, ino.value) if found else None

    note = watches_c.watch_name_note
    note.argtypes = [ctypes.c_uint64, ctypes.c_uint64, ctypes.c_char_p]
    assert note(os.makedev(8, 1), 1 << 40, b"ile[2a:7]") == 0
    assert note(os.makedev(0, 99), 8, b"ile[2a:8]") == 0
    assert stat(b"ile[2a:7]") == (os.makedev(8, 1), 1 << 40)
    assert stat(b"ile[2a:8]") == (os.makedev(0, 99), 8)
    assert stat(b"ile[0:1]") == (0, 0)  # of an earlier dump
    assert stat(b"etc") is None
    watches_c.watch_names_reset()
    assert stat(b"ile[2a:7]") == (0, 0)
