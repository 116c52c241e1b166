"""What cffi is told: each structure that Python reads has its fields."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cffi import FFI

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "plugin"))

from embed import embed_build
from kernel import kernel_build

BUILDERS: dict[str, Callable[[], FFI]] = {
    "kernel": kernel_build.builder,
    "embed": lambda: embed_build.builder(frozen="", linked=[], executable="python3"),
}


def structures(ffi: FFI) -> dict[str, list[str]]:
    """The fields of each structure that is declared, by its name."""
    _, names, _ = ffi.list_types()
    types = {name: ffi.typeof(f"struct {name}") for name in names}
    return {name: [field for field, _ in kind.fields or []] for name, kind in types.items()}


@pytest.mark.parametrize("which", BUILDERS)
def test_structures_have_fields(which: str) -> None:
    found = structures(BUILDERS[which]())
    assert "file_facts" in found
    assert [name for name, fields in found.items() if not fields] == []


def test_a_structure_without_fields_is_found() -> None:
    ffi = FFI()
    ffi.cdef("struct unknown; struct known { int field; }; void call(struct unknown *it);")
    assert structures(ffi) == {"known": ["field"], "unknown": []}
