"""The table of filesystem types: what its rows say, and that it is the only one."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from criu_detached.filesystems import types
from criu_detached.filesystems.types import by_magic, by_name, is_silly_renamed

ROOT = Path(__file__).resolve().parents[3]
TABLE = ROOT / "criu_detached/filesystems/types.py"
HEADER = Path("/usr/include/linux/magic.h")

DASHES = str.maketrans(" -", "__")
ROWS: tuple[types.FilesystemType, ...] = vars(types)["_ROWS"]


def integers(text: str) -> set[int]:
    """Every integer that stands in Python code."""
    return {
        node.value
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Constant) and type(node.value) is int
    }


def integers_of_c(text: str) -> set[int]:
    """Every integer that stands in C code, comments included."""
    found = re.findall(r"\b(0[xX][0-9a-fA-F]+|[1-9][0-9]*)[uUlL]*\b", text)
    return {int(number, 0) for number in found}


def magics() -> set[int]:
    """Magic numbers, with those of the kernel's header that no row has."""
    found = re.findall(r"_MAGIC\w*\s+0x0*([0-9a-fA-F]{3,})", HEADER.read_text())
    assert len(found) > 60
    return {row.magic for row in ROWS} | {
        number for text in found if (number := int(text, 16)) > 255
    }


def test_it_is_the_only_table() -> None:
    """No magic number of a filesystem stands anywhere else, in Python or in C."""
    sources = [path for path in ROOT.glob("criu_detached/**/*.py") if path != TABLE]
    sources += [path for path in ROOT.glob("plugin/**/*.[ch]") if "build" not in path.parts]
    assert len(sources) > 100
    known = magics()
    for path in sources:
        read = integers if path.suffix == ".py" else integers_of_c
        assert not read(path.read_text()) & known, path


def test_no_number_comes_twice() -> None:
    numbers = [row.magic for row in ROWS]
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.magic:#x}")
def test_row(row: types.FilesystemType) -> None:
    """A row is found by its number and its names, and has what its class asks for."""
    assert by_magic(row.magic) is row
    for name in row.names:
        assert by_name(name).comes_back == row.comes_back
        assert by_name(name).traits == row.traits
    assert bool(row.key) == (row.comes_back == types.KEYED)
    assert bool(row.server) == (row.comes_back == types.BY_SERVER)
    assert len(row.names) == 1 or row.comes_back in (types.ON_DEVICE, types.BY_SERVER)
    assert all(vars(types)[trait.upper().translate(DASHES)] == trait for trait in row.traits)


def test_unknown_types() -> None:
    """What is in no row may lie on a block device, if the kernel tells its name."""
    for row in (by_magic(0x12345), by_name(b"future"), by_name(b"")):
        assert (row.names, row.traits, row.comes_back) == ([], (), types.ON_DEVICE)


@pytest.mark.parametrize(
    ("name", "silly"),
    [
        (b".fuse_hidden0000000300000001", True),
        (b"dir/.nfs000000000012a0d900000001", True),
        (b".__smb0001", True),
        (b".__afs0001", True),
        (b".nfs0/file", False),
        (b"file", False),
        (b"", False),
    ],
)
def test_silly_renamed(name: bytes, silly: bool) -> None:
    assert is_silly_renamed(name) == silly


def test_names_for_messages() -> None:
    assert types.name_for_messages(0x65735546) == b"fuse"
    assert types.name_for_messages(0x12345) == b"0x12345"
