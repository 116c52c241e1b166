# SPDX-License-Identifier: GPL-2.0-only
"""The command ``criu-detached``."""

from __future__ import annotations

import argparse
from pathlib import Path

from criu_detached import check


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
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: those of the command line, without the program's name.

    Returns:
        The exit status: 0, or 1 when a line says FAIL.
    """
    options = parser().parse_args(arguments)
    status = 0
    for line in check.check(options.lib.absolute(), options.criu):
        print(line, flush=True)
        if line.state == check.FAIL:
            status = 1
    return status
