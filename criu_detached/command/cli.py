# SPDX-License-Identifier: GPL-2.0-only
"""The command ``criu-detached``."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from criu_detached.command import built, check, engines, programs, runtimes
from criu_detached.command.line import FAIL, Line
from criu_detached.errors import DetachedError


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    top = argparse.ArgumentParser(
        prog="criu-detached",
        description="Tools for the CRIU plugin that dumps and restores files on detached mounts.",
    )
    commands = top.add_subparsers(dest="command", required=True)
    checking = commands.add_parser(
        "check",
        help="tell whether the plugin works here",
        description="Tell whether the plugin works with this kernel and this CRIU: one line each,"
        " and exit status 1 when one of them says FAIL. Run it as root: it dumps and restores a"
        " process of its own, in namespaces of its own.",
    )
    checking.add_argument(
        "--lib",
        type=Path,
        default=runtimes.installed_lib(built.default_lib()),
        metavar="DIR",
        help="the plugin directory (default: %(default)s)",
    )
    checking.add_argument(
        "--criu", metavar="PATH", help="the criu program (default: the one in PATH)"
    )
    showing = commands.add_parser(
        "show",
        help="list the detached mounts of images",
        description="List the detached mounts in an image directory: the id that the settings"
        " have for each, and how it will come back.",
    )
    showing.add_argument("images", type=Path, metavar="IMAGES", help="the image directory")
    for name, text in (
        ("install", "build the plugin and put it where CRIU finds it"),
        ("uninstall", "undo that"),
    ):
        installing = commands.add_parser(name, help=text, add_help=False)
        installing.add_argument("arguments", nargs=argparse.REMAINDER)
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: those of the command line, without the program's name.

    Returns:
        The exit status: 0, or 1 when a line of check says FAIL or the images are unreadable.
    """
    given = arguments
    if given is None:
        given = sys.argv[1:]
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # to end quietly with who reads, as head(1)
    if given[:1] == ["install"] or given[:1] == ["uninstall"]:
        return _install(given[0], given[1:])  # these options are the installer's
    options = parser().parse_args(given)
    default = runtimes.installed_lib(built.DEFAULT_LIB)
    _become_installed(options.lib if options.command == "check" else default, given)
    if options.command == "show":
        return _show(options.images)
    status = 0
    for line in _checks(options.lib.absolute(), options.criu):
        print(line, flush=True)
        if line.state == FAIL:
            status = 1
    return status


def _checks(lib: Path, criu: str | None) -> Iterator[Line]:
    yield from check.check(lib, criu)
    # Runtimes take the criu that is in PATH.
    yield from engines.check_engines(lib, programs.find_criu(None))


def _become_installed(lib: Path, arguments: list[str]) -> None:
    """Installed by pip, this package has no compiled module; the built plugin has all of it."""
    command = lib / "criu_detached" / "criu-detached"
    own = Path(__file__).resolve().parent.parent
    is_it = own == command.resolve().parent / "lib" / "criu_detached"
    if command.exists() and not is_it and not any(own.glob("_kernel.*.so")):
        os.execv(command, [str(command), *arguments])


def _install(verb: str, arguments: list[str]) -> int:
    """Run the installer that is beside this package, in a checkout, or in it, as pip puts it."""
    own = Path(__file__).resolve().parent.parent
    for directory in (own / "plugin", own.parent / "plugin"):
        if (directory / "install.py").exists():
            break
    else:
        print(
            f"criu-detached: the plugin's sources are not here: use make {verb} in a checkout, with"
            " LIBDIR=DIR and RUNTIME=NAME for --libdir and --runtime",
            file=sys.stderr,
        )
        return 1
    command = [sys.executable, str(directory / "install.py"), *arguments]
    command += ["--no-command"] if directory.parent == own else []
    command += ["--uninstall"] if verb == "uninstall" else []
    return subprocess.run(command).returncode


def _show(images: Path) -> int:
    try:
        from criu_detached.command import show  # needs the compiled module
    except ImportError as error:
        print(f"criu-detached: {error}: {built.INSTALL} first", file=sys.stderr)
        return 1
    try:
        for line in show.show(images):
            print(line)
    except DetachedError as error:
        print(f"criu-detached: {error}", file=sys.stderr)
        return 1
    return 0
