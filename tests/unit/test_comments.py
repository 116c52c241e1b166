"""Comments and documents name files that are there; each C file says what it is."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("bench", "criu_detached", "demo", "docs", "plugin", "proto", "tests")

# Where the files of others are that are cited: of CPython, CRIU, the kernel, libfuse, util-linux.
OTHERS = {"asm", "compel", "criu", "drivers", "fs", "include", "lib", "libblkid", "linux", "mm"}
OTHERS |= {"Modules", "net", "sys"}
# Those that are cited without a folder: of Python, and of libc.
BARE = {"Python.h", "fcntl.h", "marshal.c"}

NAME = re.compile(r"(?<![\w*./-])(?!DIR/)(?:[\w-]+/)*[\w-]+\.(?:[ch]|md|proto|pyi?|sh)(?![\w/])")


def sources() -> list[Path]:
    """All files with comments or text of this project."""
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    kinds = {".c", ".h", ".md", ".proto", ".py", ".pyi"}
    return [ROOT / "README.md", *(path for path in found if path.suffix in kinds)]


def comments(path: Path) -> Iterator[str]:
    """What a file says to its readers."""
    text = path.read_text()
    if path.suffix in (".c", ".h", ".proto"):
        yield from re.findall(r"/\*.*?\*/|//[^\n]*", text, re.DOTALL)
    elif path.suffix == ".md":
        yield text
    else:
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        yield from (token.string for token in tokens if token.type == tokenize.COMMENT)
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
        nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, kinds)]
        yield from filter(None, map(ast.get_docstring, nodes))


def is_of_others(name: str) -> bool:
    """Tell a C file that is cited from one of this project; all else is of this project."""
    folder = name.partition("/")[0] if "/" in name else None
    return name in BARE or (name.endswith((".c", ".h")) and folder in OTHERS)


def names() -> set[str]:
    """The names that a file of this project may be called by: its path, or the end of it."""
    paths = [path.relative_to(ROOT) for path in [*sources(), *ROOT.glob("*.sh")]]
    return {"/".join(path.parts[start:]) for path in paths for start in range(len(path.parts))}


def test_named_files_exist() -> None:
    known = names()
    gone = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in sources()
        for text in comments(path)
        for name in NAME.findall(text)
        if name not in known and not is_of_others(name)
    }
    assert gone == set()


def test_each_c_file_says_what_it_is() -> None:
    """As ruff sees to it for Python: the first thing after the licence."""
    files = [
        path for path in sources() if path.suffix in (".c", ".h") and path.parts[-3] == "plugin"
    ]
    silent = [path.name for path in files if not path.read_text().splitlines()[1].startswith("/*")]
    assert len(files) > 50 and silent == []
