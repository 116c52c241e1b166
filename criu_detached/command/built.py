# SPDX-License-Identifier: GPL-2.0-only
"""The plugin directory: is all there?"""

from __future__ import annotations

from pathlib import Path

from criu_detached.command.line import FAIL, OK, Line

# Where CRIU looks without --libdir and CRIU_LIBS_DIR, as Debian builds it (CR_PLUGIN_DEFAULT)
DEFAULT_LIB = Path("/usr/lib/criu")
REBUILD = "build it again with make plugin, make install or criu-detached install"
INSTALL = "install it (make install, or criu-detached install after pip)"

# What CRIU and the command begin with; that all else is there is shown by the trial.
PARTS = (
    "criu_detached.so",
    "criu_detached/embed.so",
    "criu_detached/criu-detached",
    "criu_detached/lib/criu_detached/__init__.py",
    "criu_detached/lib/criu_detached/entry.py",
    "criu_detached/lib/criu_detached/kernel/__init__.py",
    "criu_detached/lib/criu_detached/_kernel.*.so",
)


def default_lib() -> Path:
    """Return the plugin directory that this file is part of, else CRIU's own."""
    # DIR/criu_detached/lib/criu_detached/command/built.py
    own = Path(__file__).resolve().parent.parent.parent.parent.parent
    return own if (own / PARTS[0]).exists() else DEFAULT_LIB


def check_parts(lib: Path) -> Line:
    """Is the plugin built and whole?"""
    missing = [part for part in PARTS if not any(lib.glob(part))]
    if len(missing) == len(PARTS):
        return Line(
            FAIL,
            "plugin",
            f"there is none in {lib}: {INSTALL}, or name the directory that it is in with --lib"
            " DIR",
        )
    if missing:
        return Line(FAIL, "plugin", f"{lib} lacks {', '.join(missing)}: {REBUILD}")
    if DEFAULT_LIB.exists() and lib.exists() and lib.samefile(DEFAULT_LIB):
        return Line(OK, "plugin", f"{lib} is complete; criu finds it by itself")
    return Line(OK, "plugin", f"{lib} is complete; give criu the option --libdir {lib}")
