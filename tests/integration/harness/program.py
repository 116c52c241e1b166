"""How a function of a test module is handed to a process that must not import that module.

The test module would bring pytest and a hundred mapped files into the process that is dumped.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

from .agent import Check

Program = Callable[..., Check]


def shipped(program: Program) -> dict[str, Any]:
    """The program's text, with the modules, functions and constants that it uses."""
    assert isinstance(program, FunctionType)
    modules: dict[str, str] = {}
    constants: dict[str, Any] = {}
    sources: dict[str, str] = {}
    _collect(program, modules, constants, sources)
    return {
        "program": program.__name__,
        "source": "\n".join(["from __future__ import annotations", *sources.values()]),
        "modules": modules,
        "constants": constants,
    }


def _collect(
    function: FunctionType,
    modules: dict[str, str],
    constants: dict[str, Any],
    sources: dict[str, str],
) -> None:
    """Add a function and all that it uses of its module."""
    sources[function.__name__] = textwrap.dedent(inspect.getsource(function))
    for name in _names(function.__code__):
        if name.startswith("@"):  # pytest's, for an assertion that it rewrote
            continue
        value = function.__globals__.get(name)
        if isinstance(value, ModuleType):
            modules[name] = value.__name__
        elif isinstance(value, FunctionType) and name not in sources:
            _collect(value, modules, constants, sources)
        elif isinstance(value, int | str | list | dict):
            constants[name] = value


def _names(code: CodeType) -> Iterator[str]:
    """The names that a piece of code and the functions in it look up."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
