# SPDX-License-Identifier: GPL-2.0-only
"""Container engines on this machine: whether a checkpoint loads the plugin, what else it lacks."""

from __future__ import annotations

import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

from criu_detached.command import built, programs, runtimes
from criu_detached.command.line import OK, WARN, Line

CONTAINERS = (Path("/usr/share/containers"), Path("/etc/containers"))  # the later one wins
IPTABLES = "iptables-restore"  # iptables_network_lock_internal, criu/net.c


def check_engines(lib: Path, criu: str | None) -> Iterator[Line]:
    """Yield for each runtime that is installed whether it loads the plugin, and with which CRIU.

    Args:
        lib: the plugin directory.
        criu: the program that is in the runtimes' PATH, if any.
    """
    with_criu = f"with {criu}, {_version(criu)}" if criu else "but finds no criu"
    found = [name for name in runtimes.RUNTIMES if programs.find_program(name)]
    for runtime in found:
        yield _check_runtime(runtime, lib, with_criu)
    if programs.find_program("podman"):
        used = podman_runtime()
        if used in runtimes.RUNTIMES:
            below = _check_runtime(used, lib, with_criu)
            yield Line(below.state, "podman", f"runs {used}, which {below.text}")
        else:
            yield Line(WARN, "podman", f"runs {used}, of which this command knows nothing")
    if found:
        yield _check_network(found)


def _version(criu: str) -> str:
    try:
        return f"version {programs.criu_version(criu)}"
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"which cannot be run ({error})"


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
    return next((name for name in ("crun", "runc") if programs.find_program(name)), "no runtime")


def _check_runtime(runtime: str, lib: Path, with_criu: str) -> Line:
    lacking = _lacking(runtime)
    if lacking:
        return Line(WARN, runtime, f"cannot checkpoint at all: {lacking}")
    place, why = built.DEFAULT_LIB, "CRIU's default"
    for source in _sources(runtime):
        named = runtimes.libdir_of(source)
        if named is not None:
            place, why = named, f"{source} says so"
            break
    if not (place / built.PARTS[0]).exists():
        return Line(
            WARN,
            runtime,
            f"does not load the plugin: it is not in {place} ({why}); put it there with make"
            f" install LIBDIR={place} in a checkout, or, where pip installed it, with"
            f" criu-detached install --libdir {place}",
        )
    other = "" if place.exists() and lib.exists() and place.samefile(lib) else ", not the one above"
    return Line(OK, runtime, f"loads the plugin from {place} ({why}{other}) {with_criu}")


def _lacking(runtime: str) -> str:
    """Return what a runtime needs for any checkpoint and does not have."""
    if runtime != "crun":
        return ""
    said = runtimes.said_of_itself(runtime).split()
    if said and "+CRIU" not in said:
        return "this crun was built without CRIU"
    return "" if runtimes.libcriu() else f"install {runtimes.LIBCRIU} (libcriu2)"


def _sources(runtime: str) -> tuple[Path, Path]:
    """Return the files that a runtime's CRIU reads, the one first that counts."""
    return runtimes.settings_file(runtime), runtimes.SETTINGS / "default.conf"


def _check_network(found: list[str]) -> Line:
    """Can CRIU lock the network of a container that has one of its own?"""
    subject = "network"
    if programs.find_program(IPTABLES):
        return Line(OK, subject, f"containers' networks are locked by {IPTABLES}")
    if all(
        any(runtimes.setting(file, "network-lock") for file in _sources(name)) for name in found
    ):
        return Line(OK, subject, "containers' networks are locked as network-lock says")
    return Line(
        WARN,
        subject,
        f"there is no {IPTABLES}, with which CRIU locks a network that a container has of its own:"
        f" install iptables, or write network-lock nftables into {runtimes.SETTINGS}/default.conf",
    )
