# SPDX-License-Identifier: GPL-2.0-only
"""The cffi module ``criu_detached._kernel``: functions of kernel.h, structures of uapi.h."""

from __future__ import annotations

from pathlib import Path

from cffi import FFI

MODULE = "criu_detached._kernel"
SOURCE = Path(__file__).resolve().parent.parent

HEADERS = ("kernel/file_facts.h", "kernel/uapi.h", "kernel/kernel.h", "kernel/walk.h")


def declarations(header: str) -> str:
    """Return what a header declares, for cffi, which knows no preprocessor."""
    lines = (SOURCE / header).read_text().splitlines()
    return "\n".join(line for line in lines if not line.startswith("#"))


def builder() -> FFI:
    """Describe ``criu_detached._kernel``; ``emit_c_code`` writes its C source."""
    ffi = FFI()
    ffi.cdef("\n".join(map(declarations, HEADERS)))
    ffi.set_source(MODULE, '#include "kernel/kernel.h"\n#include "kernel/walk.h"')
    return ffi
