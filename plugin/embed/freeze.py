# SPDX-License-Identifier: GPL-2.0-only
"""Frozen modules: the bytecode that CRIU's Python runs, as a table for the C compiler.

All of it is in embed.so, so CRIU's Python opens no file and searches no directory. Apart from being
safer, that takes half the time: each module would be looked for, and its file read, by Python code.
"""

from __future__ import annotations

import ast
import marshal
from collections.abc import Iterator
from pathlib import Path

# Installed by pip, these files are in a directory of the package; in a checkout, beside it.
_HERE = Path(__file__).resolve().parent
_BESIDE = _HERE.parent.parent
PACKAGE = _BESIDE / "criu_detached" if (_BESIDE / "criu_detached").exists() else _BESIDE

# The command line tool; CRIU does not load it.
TOOLS = ["__main__", "command"]

# Modules beside this file that take the place of some of Python's library.
STAND_INS = {"encodings": "small_encodings", "small_os": "small_os"}


def modules() -> dict[str, Path]:
    """Return the modules that are frozen, by name, with their files."""
    return package_modules() | {name: _HERE / f"{module}.py" for name, module in STAND_INS.items()}


def package_modules() -> dict[str, Path]:
    """Return the modules of the package that CRIU loads, by name, with their files."""
    left_out = {*TOOLS, "plugin"}
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE).with_suffix("").parts
        if place[0] not in left_out:
            name = ".".join([PACKAGE.name, *place])
            found[name.removesuffix(".__init__")] = path
    return found


def shown_path(path: Path) -> str:
    """Return what tracebacks show for a frozen module: its path in a checkout, or as installed."""
    return str(path.relative_to(PACKAGE.parent))


class _Bare(ast.NodeTransformer):
    """Takes annotations away. The methods have ast's names."""

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.stmt:
        return ast.copy_location(ast.Pass(), node) if node.module == "__future__" else node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.stmt:
        bare = ast.Assign([node.target], node.value) if node.value else ast.Pass()
        return ast.copy_location(bare, node)


def code_of(source: bytes, shown: str) -> bytes:
    """Return a module's bytecode.

    Docstrings and annotations are left out, for each of them takes a twentieth of Python's start.
    With docstrings assertions go: they tell the type checker what was made sure of before.

    Args:
        source: the module's text.
        shown: the path that tracebacks will show with its lines.
    """
    tree = _Bare().visit(ast.parse(source))
    return marshal.dumps(compile(tree, shown, "exec", dont_inherit=True, optimize=2))


def c_source() -> str:
    """Return the table ``frozen_modules`` (struct _frozen of Python's C API)."""
    return "\n".join(_lines(modules()))


def _lines(files: dict[str, Path]) -> Iterator[str]:
    entries = []
    for name, path in files.items():
        code, symbol = (
            code_of(path.read_bytes(), shown_path(path)),
            f"code_{name.replace('.', '_')}",
        )
        yield f"static const unsigned char {symbol}[] = {{{','.join(map(str, code))}}};"
        is_package = int(path.stem == "__init__")
        entries.append(f'\t{{ "{name}", {symbol}, {len(code)}, .is_package = {is_package} }},')
    yield "const struct _frozen frozen_modules[] = {"
    yield from entries
    yield "\t{ 0 },"
    yield "};"
