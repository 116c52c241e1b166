# SPDX-License-Identifier: GPL-2.0-only
"""Frozen modules: the bytecode that CRIU's Python runs, as a table for the C compiler.

All of it is in embed.so, so CRIU's Python opens no file and searches no directory. Apart from being
safer, that takes half the time: each module would be looked for, and its file read, by Python code.
"""

from __future__ import annotations

import importlib.util
import marshal
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "criu_detached"

# The command line tool and what it uses; CRIU does not load these.
TOOLS = {"__main__", "check", "cli", "show", "trial"}

# What Python's library has as files, and Python or the package cannot start without.
LIBRARY = ("__future__", "encodings", "encodings.aliases", "encodings.utf_8")


def package_modules() -> dict[str, Path]:
    """Return the modules of the package that CRIU loads, by name, with their files."""
    files = {path.stem: path for path in sorted(PACKAGE.glob("*.py")) if path.stem not in TOOLS}
    package = {PACKAGE.name: files.pop("__init__")}
    return package | {f"{PACKAGE.name}.{name}": path for name, path in files.items()}


def library_modules() -> dict[str, Path]:
    """Return those of Python's library."""
    found = {name: importlib.util.find_spec(name) for name in LIBRARY}
    return {name: Path(str(spec.origin)) for name, spec in found.items() if spec}


def code_of(name: str, path: Path) -> bytes:
    """Return a module's bytecode; tracebacks will show its path in the package."""
    shown = f"{name.replace('.', '/')}.py"
    return marshal.dumps(compile(path.read_bytes(), shown, "exec", dont_inherit=True))


def c_source() -> str:
    """Return the table ``frozen_modules`` (struct _frozen of Python's C API)."""
    return "\n".join(_lines(package_modules() | library_modules()))


def _lines(modules: dict[str, Path]) -> Iterator[str]:
    entries = []
    for name, path in modules.items():
        code, symbol = code_of(name, path), f"code_{name.replace('.', '_')}"
        yield f"static const unsigned char {symbol}[] = {{{','.join(map(str, code))}}};"
        is_package = int(path.stem == "__init__")
        entries.append(f'\t{{ "{name}", {symbol}, {len(code)}, .is_package = {is_package} }},')
    yield "static const struct _frozen frozen_modules[] = {"
    yield from entries
    yield "\t{ 0 },"
    yield "};"
