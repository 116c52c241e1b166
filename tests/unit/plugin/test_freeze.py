"""The frozen modules: what CRIU's Python has, and that it is what the package asks for."""

from __future__ import annotations

import marshal
import subprocess
import sys
from pathlib import Path
from types import CodeType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "plugin"))

from embed import freeze


def test_modules() -> None:
    modules = freeze.modules()
    assert {"criu_detached", "criu_detached.entry", "encodings"} < set(modules)
    assert not set(freeze.TOOLS) & {name.split(".")[1] for name in modules if "." in name}
    assert all(path.is_file() for path in modules.values())


def test_tracebacks_name_the_module() -> None:
    modules = freeze.package_modules()
    frozen = freeze.code_of(
        "criu_detached.dump.dump", modules["criu_detached.dump.dump"].read_bytes()
    )
    code: CodeType = marshal.loads(frozen)
    assert code.co_filename == "criu_detached/dump/dump.py"


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
    exec(marshal.loads(freeze.code_of("module", SOURCE)), names)  # noqa: S102
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
