#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Build the plugin into a directory that ``criu dump --lib DIR`` can be given.

DIR/criu_detached.so                 the shim: all that CRIU itself loads
DIR/criu_detached/embed.so           Python inside CRIU with all its code, opened on need
DIR/criu_detached/criu-detached      the command line tool
DIR/criu_detached/lib/criu_detached  the Python package as that tool imports it

No path of DIR is built in.
"""

from __future__ import annotations

import argparse
import compileall
import hashlib
import importlib.util
import os
import py_compile
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from embed import freeze

SOURCE = Path(__file__).resolve().parent
PACKAGE = freeze.PACKAGE
# As CRIU is built: where that matters, on 32-bit processors, files may be large.
CFLAGS = ["-O2", "-g", "-fPIC", "-fvisibility=hidden", "-D_FILE_OFFSET_BITS=64"]
WARNINGS = ["-std=gnu11", "-Wall", "-Wextra"]

# Folders with the C files of what CRIU loads, and of what is opened on need.
SHIM = ("shim",)
EMBEDDED = ("embed", "fast")
# The C files behind kernel.h, for what is opened on need and for the command line tool.
KERNEL = ("kernel",)

LAUNCHER = """#!{python} -I
import sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parent / "lib"))
from criu_detached.command.cli import main
sys.exit(main())
"""


class BuildError(Exception):
    """What is missing on this machine, and how to get it."""


def compiler() -> list[str]:
    """Return the C compiler's command line: $CC, or cc."""
    return shlex.split(os.environ.get("CC", "cc"))


def cc(output: Path, sources: list[Path], *options: str) -> None:
    """Compile and link a shared object; an object file where the output is named so.

    Args:
        output: the file to write.
        sources: C and object files.
        options: further compiler options.

    Raises:
        BuildError: the compiler is absent or failed.
    """
    kind = "-c" if output.suffix == ".o" else "-shared"
    command = [
        *compiler(),
        *CFLAGS,
        kind,
        f"-I{SOURCE}",
        *map(str, sources),
        "-o",
        str(output),
        *options,
    ]
    try:
        subprocess.run(command, check=True)
    except FileNotFoundError as error:
        raise BuildError(f"no C compiler {command[0]!r}: install gcc, or set CC") from error
    except subprocess.CalledProcessError as error:
        raise BuildError(f"{output.name}: the C compiler failed: {shlex.join(command)}") from error


def python_headers() -> str:
    """Return the directory of Python.h.

    Raises:
        BuildError: it is not installed.
    """
    include = Path(sysconfig.get_paths()["include"])
    if not (include / "Python.h").exists():
        raise BuildError(f"{include}/Python.h is missing: install Python's headers (python3-dev)")
    return str(include)


def libpython() -> list[str]:
    """Return the linker options for the shared libpython of this interpreter.

    Raises:
        BuildError: this Python has none.
    """
    if not sysconfig.get_config_var("Py_ENABLE_SHARED"):
        raise BuildError(
            f"{sys.executable} has no shared libpython: use the distribution's python3,"
            " or one configured with --enable-shared"
        )
    libdir = sysconfig.get_config_var("LIBDIR")
    options = [f"-L{libdir}", f"-lpython{sysconfig.get_config_var('LDVERSION')}"]
    if libdir not in ("/usr/lib", "/lib", "/usr/lib64"):
        options.append(f"-Wl,-rpath,{libdir}")
    return options


def extension_modules() -> dict[str, str]:
    """Return the extension modules that the package imports, with their files.

    Those that this Python has built in are left out.

    Raises:
        BuildError: cffi is not installed.
    """
    found = {}
    for name in ("_cffi_backend", "binascii", "fcntl"):
        spec = importlib.util.find_spec(name)
        if spec is None:
            raise BuildError("the Python package cffi is missing: install python3-cffi")
        if spec.origin != "built-in":
            found[name] = os.path.realpath(str(spec.origin))
    return found


def build_id() -> int:
    """Return a number that tells parts of one build from those of another (embed/host.h)."""
    sources = {path for path in SOURCE.rglob("*") if path.suffix in (".c", ".h", ".py")}
    digest = hashlib.sha256()
    for path in sorted(sources | set(freeze.modules().values())):
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return int.from_bytes(digest.digest()[:8], "big")


def build_shim(output: Path, identity: int) -> None:
    """Build what CRIU loads; it links libc alone and is never unmapped.

    Args:
        output: the file to write.
        identity: of this build.
    """
    linking = "-Wl,-z,nodelete,-z,now,-z,relro,--no-undefined"
    cc(output, c_files(SHIM), *WARNINGS, f"-DBUILD_ID={identity:#x}", linking)


def c_files(folders: tuple[str, ...]) -> list[Path]:
    """Return the C files of some folders beside this file."""
    return [path for folder in folders for path in sorted((SOURCE / folder).glob("*.c"))]


def build_objects(scratch: Path, folders: tuple[str, ...], *options: str) -> list[Path]:
    """Compile the C files of some folders one by one, and return the object files."""
    objects = []
    for source in c_files(folders):
        objects.append(scratch / f"{source.parent.name}-{source.stem}.o")
        cc(objects[-1], [source], *WARNINGS, *options)
    return objects


def build_kernel(scratch: Path) -> list[Path]:
    """Build ``criu_detached._kernel``, and return its object files."""
    from kernel.kernel_build import builder

    source, output = scratch / "kernel.c", scratch / "kernel.o"
    builder().emit_c_code(str(source))
    cc(output, [source], f"-I{python_headers()}")
    return [output, *build_objects(scratch, KERNEL)]


def build_embedded(output: Path, kernel: list[Path], scratch: Path, identity: int) -> None:
    """Build the module that starts Python inside CRIU.

    Args:
        output: the file to write.
        kernel: object files of ``criu_detached._kernel``.
        scratch: a directory for what is needed meanwhile.
        identity: of this build.
    """
    from embed.embed_build import builder

    modules = extension_modules()
    source = scratch / "embed.c"
    linked = ["criu_detached._kernel", *modules]
    builder(freeze.c_source(), linked, sys.executable).emit_c_code(str(source))
    include = f"-I{python_headers()}"
    objects = build_objects(scratch, EMBEDDED, include, f"-DBUILD_ID={identity:#x}")
    sources = [source, *objects, *kernel]
    # CRIU exports all its functions: without -Bsymbolic one of them could take the place of ours.
    options = [*modules.values(), *libpython(), "-Wl,-z,nodelete,-Bsymbolic", "-pthread"]
    cc(output, sources, include, *options)


def build_package(target: Path, kernel: list[Path]) -> None:
    """Copy the Python package, with its ``_kernel`` module, for the command line tool."""
    shutil.copytree(PACKAGE, target, ignore=shutil.ignore_patterns("__pycache__", "*.so", "plugin"))
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    cc(target / f"_kernel{suffix}", kernel, "-pthread")


def build(output: Path) -> None:
    """Build the whole plugin directory.

    Args:
        output: where the files are written; what an earlier build left there is replaced.

    Raises:
        BuildError: something is missing on this machine; the old build is then intact.
    """
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output, prefix=".build-") as temporary:
        new = Path(temporary) / "criu_detached"
        scratch = Path(temporary) / "scratch"
        scratch.mkdir()
        lib = new / "lib"
        lib.mkdir(parents=True)
        identity = build_id()
        build_shim(Path(temporary) / "criu_detached.so", identity)
        kernel = build_kernel(scratch)
        build_embedded(new / "embed.so", kernel, scratch, identity)
        build_package(lib / "criu_detached", kernel)
        compileall.compile_dir(
            lib,
            quiet=1,
            stripdir=str(lib),
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )
        launcher = new / "criu-detached"
        launcher.write_text(LAUNCHER.format(python=sys.executable))
        launcher.chmod(0o755)
        shutil.rmtree(output / "criu_detached", ignore_errors=True)
        new.rename(output / "criu_detached")
        (Path(temporary) / "criu_detached.so").rename(output / "criu_detached.so")


def main() -> int:
    """Command line: ``build.py --output DIR``."""
    parser = argparse.ArgumentParser(description="build the criu-detached plugin")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    options = parser.parse_args()
    try:
        build(options.output.resolve())
    except BuildError as error:
        print(f"build: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
