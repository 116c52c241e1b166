# SPDX-License-Identifier: GPL-2.0-only
"""Frozen modules: the bytecode that CRIU's Python runs, as a table for the C compiler.

All of it is in embed.so, so CRIU's Python opens no file and searches no directory. Apart from being
safer, that takes half the time: each module would be looked for, and its file read, by Python code.
"""

from __future__ import annotations
import __future__

import marshal
from collections.abc import Iterator
from pathlib import Path

# Installed by pip, these files are in a directory of the package; in a checkout, beside it.
_BESIDE = Path(__file__).resolve().parent.parent
PACKAGE = _BESIDE / "criu_detached" if (_BESIDE / "criu_detached").exists() else _BESIDE

# The command line tool and what it uses; CRIU does not load these.
TOOLS = {"__main__", "check", "cli", "runtimes", "show", "trial"}

# Its place is taken by a module that is there under another name.
STAND_INS = {"encodings": "small_encodings"}


def modules() -> dict[str, Path]:
    """Return the modules that are frozen, by name, with their files."""
    return package_modules() | {
        "__future__": Path(__future__.__file__),
        **{name: PACKAGE / f"{module}.py" for name, module in STAND_INS.items()},
    }


def package_modules() -> dict[str, Path]:
    """Return the modules of the package that CRIU loads, by name, with their files."""
    left_out = {*TOOLS, *STAND_INS.values()}
    files = {path.stem: path for path in sorted(PACKAGE.glob("*.py")) if path.stem not in left_out}
    package = {PACKAGE.name: files.pop("__init__")}
    return package | {f"{PACKAGE.name}.{name}": path for name, path in files.items()}


def code_of(name: str, path: Path) -> bytes:
    """Return a module's bytecode; tracebacks will show its path in the package.

    Docstrings are left out, for they take a twentieth of Python's start, and with them assertions:
    they tell the type checker what was made sure of before.
    """
    shown = f"{name.replace('.', '/')}.py"
    code = compile(path.read_bytes(), shown, "exec", dont_inherit=True, optimize=2)
    return marshal.dumps(code)


def c_source() -> str:
    """Return the table ``frozen_modules`` (struct _frozen of Python's C API)."""
    return "\n".join(_lines(modules()))


def _lines(files: dict[str, Path]) -> Iterator[str]:
    entries = []
    for name, path in files.items():
        code, symbol = code_of(name, path), f"code_{name.replace('.', '_')}"
        yield f"static const unsigned char {symbol}[] = {{{','.join(map(str, code))}}};"
        is_package = int(path.stem == "__init__")
        entries.append(f'\t{{ "{name}", {symbol}, {len(code)}, .is_package = {is_package} }},')
    yield "static const struct _frozen frozen_modules[] = {"
    yield from entries
    yield "\t{ 0 },"
    yield "};"
