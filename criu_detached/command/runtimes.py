# SPDX-License-Identifier: GPL-2.0-only
"""Container runtimes: the settings with which they start CRIU, and so which plugins it loads.

runc and crun hand CRIU a settings file, and podman runs one of them. A line "libdir DIR" there, or
in CRIU's own default.conf, takes the place of CRIU's default directory. An older crun hands none.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

from criu_detached.command import check
from criu_detached.command.check import OK, WARN, Line

SETTINGS = Path("/etc/criu")
RUNTIMES = ("runc", "crun")
CONTAINERS = (Path("/usr/share/containers"), Path("/etc/containers"))  # the later one wins
# From this version on crun hands CRIU a file (handle_criu_config_file in its criu.c).
CRUN_HANDS_FILE = (1, 26)

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
    if _version("crun") < CRUN_HANDS_FILE:
        return directory / "default.conf"
    # Without a file of its own crun uses that of runc.
    return shared if shared.exists() and not own.exists() else own


def _version(runtime: str) -> tuple[int, int]:
    """Return the version of a runtime; a new one where it is not installed."""
    program = check.find_program(runtime)
    said = _said(program, "--version") if program else ""
    found = re.search(r"version (\d+)\.(\d+)", said)
    return (int(found[1]), int(found[2])) if found else (99, 0)


def _said(*command: str) -> str:
    """Return what a command prints, or nothing when it fails."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode(errors="replace").strip()


def libdir_of(file: Path) -> Path | None:
    """Return the plugin directory that a settings file names, if it does.

    Raises:
        OSError: the file is there, but cannot be read.
    """
    if not file.exists():
        return None
    found = None
    for line in file.read_text(errors="surrogateescape").splitlines():
        words = line.split("#", 1)[0].replace("=", " ", 1).split()
        if len(words) == 2 and words[0] == "libdir":
            found = Path(words[1])
    return found


# --- install and uninstall ---


def add_libdir(runtime: str, libdir: Path, directory: Path = SETTINGS) -> str:
    """Have a runtime's CRIU load plugins from a directory; all else in its settings stays.

    Args:
        runtime: "runc" or "crun".
        libdir: the plugin directory.
        directory: where the settings files are.

    Returns:
        What was done, for the user.

    Raises:
        SettingsError: other plugins are set there, or others than root can write the file.
        OSError: it cannot be written.
    """
    file = settings_file(runtime, directory)
    named = libdir_of(file)
    if named == libdir:
        return f"{file} has the line already: libdir {libdir}"
    if named is not None:
        raise SettingsError(
            f"{file} names another plugin directory, {named}: install with --libdir {named}, or"
            " remove that line"
        )
    if len(str(libdir).split()) != 1 or "#" in str(libdir):
        raise SettingsError(f"{libdir}: CRIU's settings cannot name such a path")
    _refuse_writers(file)
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
    found = list(check.writers([existing]))
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


# --- check ---


def check_runtimes(lib: Path, criu: str | None) -> Iterator[Line]:
    """Yield for each runtime that is installed whether it loads the plugin, and with which CRIU.

    Args:
        lib: the plugin directory.
        criu: the program that is in the runtimes' PATH, if any.
    """
    with_criu = f"with {criu}, version {check.criu_version(criu)}" if criu else "but finds no criu"
    for runtime in RUNTIMES:
        if check.find_program(runtime):
            yield _check_runtime(runtime, lib, with_criu)
    if check.find_program("podman"):
        used = podman_runtime()
        if used in RUNTIMES:
            below = _check_runtime(used, lib, with_criu)
            yield Line(below.state, "podman", f"runs {used}, which {below.text}")
        else:
            yield Line(WARN, "podman", f"runs {used}, of which this command knows nothing")


def podman_runtime() -> str:
    """Return the name of the runtime that podman runs, from containers.conf(5).

    podman itself is not asked: it would make its storage, and this command changes nothing.
    """
    found = ""
    for directory in CONTAINERS:
        drop_ins = sorted((directory / "containers.conf.d").glob("*.conf"))
        for file in (directory / "containers.conf", *drop_ins):
            try:
                engine = tomllib.loads(file.read_text()).get("engine", {})
            except (OSError, ValueError):
                continue
            found = str(engine.get("runtime", found))
    if found:
        return Path(found).name
    return next((name for name in ("crun", "runc") if check.find_program(name)), "no runtime")


def _check_runtime(runtime: str, lib: Path, with_criu: str) -> Line:
    file = settings_file(runtime)
    for source in (file, SETTINGS / "default.conf"):
        named = libdir_of(source)
        if named is not None:
            place, why = named, f"{source} says so"
            break
    else:
        place, why = check.DEFAULT_LIB, "CRIU's default"
    if runtime == "crun" and not _has_libcriu():
        return Line(WARN, runtime, "cannot checkpoint at all: install libcriu.so.2 (libcriu2)")
    if not (place / check.PARTS[0]).exists():
        return Line(
            WARN,
            runtime,
            f"does not load the plugin: it is not in {place} ({why}); put it there with"
            f" criu-detached install --libdir {place}",
        )
    other = "" if place.exists() and lib.exists() and place.samefile(lib) else ", not the one above"
    return Line(OK, runtime, f"loads the plugin from {place} ({why}{other}) {with_criu}")


def _has_libcriu() -> bool:
    """Tell whether crun can open CRIU's library, for which its packages do not all ask."""
    try:
        ctypes.CDLL("libcriu.so.2")
    except OSError:
        return False
    return True
