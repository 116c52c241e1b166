# SPDX-License-Identifier: GPL-2.0-only
"""The cffi module ``criu_detached._kernel``: the functions of kernel.h."""

from __future__ import annotations

from pathlib import Path

from cffi import FFI

MODULE = "criu_detached._kernel"
SOURCE = Path(__file__).resolve().parent.parent

# As facts.h has it; the C compiler compares the two.
FACTS_CDEF = """
struct file_facts {
    uint64_t dev;
    uint64_t ino;
    uint64_t rdev;
    uint64_t size;
    uint32_t mnt_id;
    uint32_t mode;
    uint32_t nlink;
    uint32_t uid;
    uint32_t gid;
    uint32_t attributes;
};
"""


def declarations(header: str) -> str:
    """Return what a header declares, for cffi, which knows no preprocessor."""
    lines = (SOURCE / header).read_text().splitlines()
    return "\n".join(line for line in lines if not line.startswith("#"))


def builder() -> FFI:
    """Describe ``criu_detached._kernel``; ``emit_c_code`` writes its C source."""
    ffi = FFI()
    ffi.cdef(FACTS_CDEF + declarations("kernel/uapi.h") + declarations("kernel/kernel.h"))
    ffi.set_source(MODULE, '#include "kernel/kernel.h"\n#include "kernel/uapi.h"')
    return ffi
