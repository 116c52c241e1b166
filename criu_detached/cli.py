# SPDX-License-Identifier: GPL-2.0-only
"""The command ``criu-detached``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from criu_detached import check, show
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
        default=check.default_lib(),
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
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: those of the command line, without the program's name.

    Returns:
        The exit status: 0, or 1 when a line of check says FAIL or the images are unreadable.
    """
    options = parser().parse_args(arguments)
    if options.command == "show":
        return _show(options.images)
    status = 0
    for line in check.check(options.lib.absolute(), options.criu):
        print(line, flush=True)
        if line.state == check.FAIL:
            status = 1
    return status


def _show(images: Path) -> int:
    try:
        for line in show.show(images):
            print(line)
    except DetachedError as error:
        print(f"criu-detached: {error}", file=sys.stderr)
        return 1
    return 0
