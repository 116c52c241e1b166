# SPDX-License-Identifier: GPL-2.0-only
"""Container runtimes: the settings with which they start CRIU, and so which plugins it loads.

runc and crun hand CRIU a settings file, and podman runs one of them. A line "libdir DIR" there, or
in CRIU's own default.conf, takes the place of CRIU's default directory. An older crun, or one with
an older libcriu, hands none.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from criu_detached.command import programs
from criu_detached.command.built import DEFAULT_LIB, PARTS
from criu_detached.command.writers import writers

SETTINGS = Path("/etc/criu")
RUNTIMES = ("runc", "crun")
LIBCRIU = "libcriu.so.2"  # load_wrapper in crun's criu.c
# From this version on crun hands CRIU a file (handle_criu_config_file in its criu.c), if libcriu
# takes one, as from 4.2 on.
CRUN_HANDS_FILE = (1, 26)
TAKES_FILE = "criu_set_config_file"

# What is written before the line, so that uninstall knows it, and whether to remove the file.
ADDED = "# added by criu-detached install"
MADE = "# file made by criu-detached install"


class SettingsError(Exception):
    """Why a settings file was not changed, and what to do."""


# --- what is set ---


def settings_file(runtime: str, directory: Path = SETTINGS) -> Path:
    """Return the file that tells the CRIU of a runtime its settings; it may be absent.

    Args:
        runtime: "runc" or "crun".
        directory: where such files are.
    """
    own, shared = directory / "crun.conf", directory / "runc.conf"
    if runtime == "runc":
        return shared
    if not crun_hands_file():
        return directory / "default.conf"
    # Without a file of its own crun uses that of runc.
    return shared if shared.exists() and not own.exists() else own


def crun_hands_file() -> bool:
    """Tell whether crun hands CRIU a settings file; what is not installed counts as new."""
    found = re.search(r"version (\d+)\.(\d+)", said_of_itself("crun"))
    if found and (int(found[1]), int(found[2])) < CRUN_HANDS_FILE:
        return False
    library = libcriu()
    return library is None or hasattr(library, TAKES_FILE)


def said_of_itself(runtime: str) -> str:
    """Return what a runtime says of its version; nothing when it is not installed or fails."""
    program = programs.find_program(runtime)
    if not program:
        return ""
    try:
        return programs.said_of_version(program, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""


def libcriu() -> ctypes.CDLL | None:
    """Return CRIU's library as crun opens it; not all packages of crun bring it."""
    try:
        return ctypes.CDLL(LIBCRIU)
    except OSError:
        return None


def libdir_of(file: Path) -> Path | None:
    """Return the plugin directory that a settings file names, if it does.

    Raises:
        OSError: the file is there, but cannot be read.
    """
    named = setting(file, "libdir")
    return Path(named) if named else None


def setting(file: Path, name: str) -> str:
    """Return the value that a settings file has for an option of CRIU's; nothing if it has none.

    Raises:
        OSError: the file is there, but cannot be read.
    """
    found = ""
    if file.exists():
        for line in file.read_text(errors="surrogateescape").splitlines():
            words = line.split("#", 1)[0].replace("=", " ", 1).split()
            if len(words) == 2 and words[0] == name:
                found = words[1]
    return found


def installed_lib(default: Path, directory: Path = SETTINGS) -> Path:
    """Return a directory that has the plugin: the default, else one that settings name.

    Args:
        default: what comes first, and is returned when no directory has it.
        directory: where the settings files are.
    """
    found = [default]
    for name in (*RUNTIMES, "default"):
        with contextlib.suppress(OSError):
            found.append(libdir_of(directory / f"{name}.conf") or default)
    return next((lib for lib in found if (lib / PARTS[0]).exists()), default)


# --- install and uninstall ---


def refuse_libdir(runtime: str, libdir: Path, directory: Path = SETTINGS) -> Path:
    """Return the settings file that a runtime's CRIU would be told of a plugin directory by.

    Args:
        runtime: "runc" or "crun".
        libdir: the plugin directory.
        directory: where the settings files are.

    Raises:
        SettingsError: other plugins are set there, or others than root can write the file.
        OSError: it cannot be read.
    """
    file = settings_file(runtime, directory)
    named = libdir_of(file)
    if named not in (None, libdir):
        raise SettingsError(
            f"{file} names another plugin directory, {named}: install with --libdir {named}, or"
            " remove that line"
        )
    if len(str(libdir).split()) != 1 or "#" in str(libdir):
        raise SettingsError(f"{libdir}: CRIU's settings cannot name such a path")
    if named is None and libdir != DEFAULT_LIB:
        _refuse_writers(file)
    return file


def add_libdir(runtime: str, libdir: Path, directory: Path = SETTINGS) -> str:
    """Have a runtime's CRIU load plugins from a directory; all else in its settings stays.

    Args:
        runtime: "runc" or "crun".
        libdir: the plugin directory.
        directory: where the settings files are.

    Returns:
        What was done, for the user.

    Raises:
        SettingsError: as refuse_libdir says.
        OSError: it cannot be written.
    """
    file = refuse_libdir(runtime, libdir, directory)
    if libdir_of(file):
        return f"{file} has the line already: libdir {libdir}"
    if libdir == DEFAULT_LIB:
        return f"{runtime} needs no setting: CRIU looks into {libdir} by itself"
    old = file.read_bytes() if file.exists() else None
    mark = MADE if old is None else ADDED
    _write(file, f"{mark}\nlibdir {libdir}\n".encode() + (old or b""))
    return f"{'made' if old is None else 'changed'} {file}: libdir {libdir}"


def remove_libdir(libdir: Path, directory: Path = SETTINGS) -> Iterator[str]:
    """Undo add_libdir for every runtime that has the line; yield what was done.

    Raises:
        OSError: a file cannot be written.
    """
    for name in (*RUNTIMES, "default"):
        file = directory / f"{name}.conf"
        if not file.exists():
            continue
        data = file.read_bytes()
        for mark in (ADDED, MADE):
            data = data.replace(f"{mark}\nlibdir {libdir}\n".encode(), b"", 1)
        if data == file.read_bytes():
            continue
        if not data and file.read_text().startswith(MADE):
            file.unlink()
            yield f"removed {file}"
        else:
            _write(file, data)
            yield f"removed the line libdir {libdir} from {file}"


def _refuse_writers(file: Path) -> None:
    existing = file
    while not existing.exists():
        existing = existing.parent
    found = list(writers([existing]))
    if found:
        raise SettingsError(
            f"{found[0]}: it says what code criu runs as root; chown root it and chmod go-w it"
        )


def _write(file: Path, data: bytes) -> None:
    """Replace a file as a whole, or make it; its mode and owner stay."""
    file = file.resolve()
    file.parent.mkdir(parents=True, exist_ok=True)
    number, new = tempfile.mkstemp(dir=file.parent, prefix=".criu-detached-")
    try:
        with open(number, "wb") as stream:
            stream.write(data)
        os.chmod(new, 0o644)
        if file.exists():
            found = file.stat()
            os.chown(new, found.st_uid, found.st_gid)
            os.chmod(new, found.st_mode & 0o7777)
        os.replace(new, file)
    except BaseException:
        os.unlink(new)
        raise
