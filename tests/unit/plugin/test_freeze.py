"""The frozen modules: what CRIU's Python has, and that it is what the package asks for."""

from __future__ import annotations

import marshal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "plugin"))

from embed import freeze

ROOT = Path(__file__).resolve().parents[3]


def test_modules() -> None:
    modules = freeze.modules()
    assert {"criu_detached", "criu_detached.entry", "encodings"} < set(modules)
    assert not set(freeze.TOOLS) & {name.split(".")[1] for name in modules if "." in name}
    assert all(path.is_file() for path in modules.values())


def codes(code: CodeType) -> Iterator[CodeType]:
    """A module's code, and that of all its functions and classes."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes(constant)


@pytest.mark.parametrize("name", freeze.modules())
def test_tracebacks_lead_to_the_source(name: str) -> None:
    """The file is there, and so are the lines: each function begins where it says."""
    path = freeze.modules()[name]
    frozen = freeze.code_of(path.read_bytes(), freeze.shown_path(path))
    for code in codes(marshal.loads(frozen)):
        lines = (ROOT / code.co_filename).read_text().splitlines()
        assert all((line or 0) <= len(lines) for _, _, line in code.co_lines())
        if not code.co_name.startswith("<"):  # <module>, <lambda>, <genexpr>
            begins = lines[code.co_firstlineno - 1].split()
            assert begins[0].startswith("@") or begins[1].startswith(code.co_name), code


SOURCE = b"""
from __future__ import annotations
class C:
    "Text."
    a: NoSuchName
    b: NoSuchName = 5
    def f(self, x: NoSuchName, *y: NoSuchName, z: NoSuchName = 1) -> NoSuchName:
        n: NoSuchName = x + z
        def inner(m: NoSuchName) -> NoSuchName: return m + n + len(y)
        return inner(self.b)
"""


def test_annotations_are_left_out() -> None:
    """All else is as it was."""
    names: dict[str, Any] = {}
    exec(marshal.loads(freeze.code_of(SOURCE, "module.py")), names)  # noqa: S102
    assert "annotations" not in names
    assert names["C"]().f(1, 2, z=3) == 10
    assert not names["C"].f.__annotations__ and not names["C"].__annotations__


def test_table(tmp_path: Path) -> None:
    """The C compiler takes it, and packages are told from modules."""
    source = tmp_path / "frozen.c"
    fields = "const char *name; const unsigned char *code; int size, is_package;"
    table = freeze.c_source()
    source.write_text(f"struct _frozen {{ {fields} }};\n{table}\nint main(void) {{ return 0; }}\n")
    subprocess.run(["cc", "-Wall", "-fsyntax-only", str(source)], check=True)
    entries = [line for line in table.splitlines() if "is_package" in line]
    packages = {line.split('"')[1] for line in entries if "is_package = 1" in line}
    files = freeze.package_modules()
    assert packages == {name for name, path in files.items() if path.stem == "__init__"}
