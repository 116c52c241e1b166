"""The frozen modules: what CRIU's Python has, and that it is what the package asks for."""

from __future__ import annotations

import marshal
import subprocess
import sys
from pathlib import Path
from types import CodeType

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "plugin"))

import freeze


def test_modules() -> None:
    modules = freeze.modules()
    assert {"criu_detached", "criu_detached.entry", "encodings", "__future__"} < set(modules)
    assert not {f"criu_detached.{name}" for name in freeze.TOOLS} & set(modules)
    assert all(path.is_file() for path in modules.values())


def test_tracebacks_name_the_module() -> None:
    modules = freeze.package_modules()
    frozen = freeze.code_of("criu_detached.dump", modules["criu_detached.dump"])
    code: CodeType = marshal.loads(frozen)
    assert code.co_filename == "criu_detached/dump.py"


def test_table(tmp_path: Path) -> None:
    """The C compiler takes it, and packages are told from modules."""
    source = tmp_path / "frozen.c"
    fields = "const char *name; const unsigned char *code; int size, is_package;"
    table = freeze.c_source()
    source.write_text(f"struct _frozen {{ {fields} }};\n{table}\nint main(void) {{ return 0; }}\n")
    subprocess.run(["cc", "-Wall", "-fsyntax-only", str(source)], check=True)
    entries = [line for line in table.splitlines() if "is_package" in line]
    packages = {line.split('"')[1] for line in entries if "is_package = 1" in line}
    assert packages == {"criu_detached"}
