# SPDX-License-Identifier: GPL-2.0-only
"""The cffi-embedded module: what Python inside CRIU has of C, and C of Python."""

from __future__ import annotations

from cffi import FFI
from kernel.kernel_build import declarations

MODULE = "_criu_detached_embed"

# Of embed.h, the rest of which is about Python's own types.
HOST_CDEF = "const struct criu_host *the_host(void);"

SOURCE = """
#include "embed/embed.h"
#include "fast/known_files.h"
#include "fast/plain_files.h"
#include "fast/recorded_files.h"
#include "kernel/shared.h"

FROZEN_MODULES
LINKED_MODULES

const wchar_t python_executable[] = L"PYTHON_EXECUTABLE";

int run_package(void)
{
	return cffi_start_python();
}
"""


def builder(frozen: str, linked: list[str], executable: str) -> FFI:
    """Describe the embedded module.

    Args:
        frozen: C source of the table of modules (freeze.py).
        linked: names of extension modules that it is linked with.
        executable: the interpreter's path, for messages.

    Returns:
        A cffi builder; ``emit_c_code`` writes the module's C source.
    """
    ffi = FFI()
    headers = (
        "kernel/file_facts.h",
        "embed/host.h",
        "fast/known_files.h",
        "fast/plain_files.h",
        "fast/recorded_files.h",
        "kernel/shared.h",
    )
    ffi.cdef("\n".join([*map(declarations, headers), HOST_CDEF]))
    ffi.embedding_api(declarations("embed/entry.h"))
    source = SOURCE.replace("PYTHON_EXECUTABLE", executable)
    source = source.replace("LINKED_MODULES", _linked_modules(linked))
    source = source.replace("FROZEN_MODULES", frozen)
    ffi.set_source(MODULE, source)
    ffi.embedding_init_code("import small_os, criu_detached.entry")
    return ffi


def _linked_modules(names: list[str]) -> str:
    """The table ``linked_modules``: for Python they are built in."""
    functions = {name: f"PyInit_{name.rpartition('.')[2]}" for name in names}
    declared = "".join(f"PyMODINIT_FUNC {function}(void);\n" for function in functions.values())
    entries = "".join(f'\t{{ "{name}", {init} }},\n' for name, init in functions.items())
    return f"{declared}struct _inittab linked_modules[] = {{\n{entries}\t{{ 0 }},\n}};"
