#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Install the plugin where CRIU finds it by itself, and the command ``criu-detached``.

    DESTDIR/LIBDIR/criu_detached.so, DESTDIR/LIBDIR/criu_detached/    see build.py
    DESTDIR/PREFIX/bin/criu-detached                                  a link into the latter

Other plugins in LIBDIR are left alone.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import build

sys.path.append(str(build.PACKAGE.parent))

from criu_detached.command import built, runtimes
from criu_detached.command.writers import writers

COMMAND = "criu-detached"
SHIM = "criu_detached.so"
PARTS = "criu_detached"


class InstallError(Exception):
    """Why nothing was installed or removed, and what to do."""


@dataclass(frozen=True)
class Target:
    """Where things go.

    Attributes:
        destdir: put before each path that is written, or empty; never part of the result.
        libdir: CRIU's plugin directory at run time.
        prefix: its bin gets the command; None if it is there, as after an installation by pip.
    """

    destdir: str
    libdir: Path
    prefix: Path | None

    def staged(self, path: Path) -> Path:
        """Return where a path of the result is written."""
        return Path(self.destdir + str(path)) if self.destdir else path

    @property
    def directory(self) -> Path:
        """The plugin directory as it is written."""
        return self.staged(self.libdir)

    @property
    def settings(self) -> Path:
        """The directory of the runtimes' settings as it is written."""
        return self.staged(runtimes.SETTINGS)

    @property
    def command(self) -> Path:
        """The command as it is written; within the plugin directory if it needs no link."""
        if self.prefix is None:
            return self.directory / PARTS / COMMAND
        return self.staged(self.prefix / "bin" / COMMAND)

    @property
    def command_target(self) -> str:
        """What the command is a link to."""
        return str(self.libdir / PARTS / COMMAND)

    def owns_command(self) -> bool:
        """Tell whether the command is there and is this plugin's."""
        return self.command.is_symlink() and os.readlink(self.command) == self.command_target


def install(target: Target) -> None:
    """Build and install, or leave everything as it was.

    Raises:
        InstallError: the target is not safe, or something is in the way.
        build.BuildError: something is missing on this machine.
        OSError: a file cannot be written.
        subprocess.CalledProcessError: a tool failed.
    """
    linked = target.prefix is not None and os.path.lexists(target.command)
    if linked and not target.owns_command():
        raise InstallError(f"{target.command} is another program: remove it, or set PREFIX")
    if not target.destdir:
        _refuse_writers(target.libdir)
    os.umask(0o022)
    target.directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.directory, prefix=".install-") as temporary:
        new = Path(temporary) / "new"
        build.build(new)
        _only_owner_writes(new)
        _swap(new, target.directory, Path(temporary) / "old")
    _link_command(target)


def _tell_runtimes(target: Target, names: list[str]) -> None:
    """Write the runtimes' settings, and say what was done."""
    for name in names:
        print(runtimes.add_libdir(name, target.libdir, target.settings))


def _refuse_writers(libdir: Path) -> None:
    """CRIU runs as root what lies there, and what that is linked with."""
    existing = libdir
    while not existing.exists():
        existing = existing.parent
    linked = map(Path, build.extension_modules().values())
    found = list(writers([existing, *linked]))
    if found:
        raise InstallError(
            f"{found[0]}: criu runs as root the code that lies there; chown root it and chmod go-w"
            " it, or use another directory or Python"
        )


def _only_owner_writes(directory: Path) -> None:
    """Files of a checkout may be writable by a group, and are copied with their modes."""
    for path in [directory, *directory.rglob("*")]:
        path.chmod(path.stat().st_mode & ~0o022 | 0o444)


def _swap(new: Path, directory: Path, old: Path) -> None:
    """Move the new build into place, and the old one away; undo that when it fails halfway."""
    old.mkdir()
    moves: list[tuple[Path, Path]] = []
    try:
        # Without the shim, CRIU sees no plugin: so it leaves first, and comes last.
        for name in (SHIM, PARTS):
            if os.path.lexists(directory / name):
                _move(directory / name, old / name, moves)
        for name in (PARTS, SHIM):
            _move(new / name, directory / name, moves)
    except OSError:
        for source, destination in reversed(moves):
            destination.rename(source)
        raise


def _move(source: Path, destination: Path, moves: list[tuple[Path, Path]]) -> None:
    source.rename(destination)
    moves.append((source, destination))


def _link_command(target: Target) -> None:
    if target.prefix is None or target.owns_command():
        return
    target.command.parent.mkdir(parents=True, exist_ok=True)
    target.command.symlink_to(target.command_target)


def uninstall(target: Target) -> None:
    """Remove what install made; what is not there is no error.

    Raises:
        OSError: a file cannot be removed.
    """
    directory = target.directory
    # First what CRIU loads: it must not find a plugin that is half gone.
    (directory / SHIM).unlink(missing_ok=True)
    parts = directory / PARTS
    if parts.is_dir() and not parts.is_symlink():
        shutil.rmtree(parts)
    if target.owns_command():
        target.command.unlink()
    with contextlib.suppress(OSError):  # it is not there, or not empty, or a mountpoint
        directory.rmdir()


def _absolute(text: str) -> Path:
    path = Path(text)
    if not path.is_absolute():
        raise argparse.ArgumentTypeError(f"{text!r} is not an absolute path")
    return Path(os.path.normpath(path))


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(description="install or uninstall the criu-detached plugin")
    made.add_argument("--destdir", default="", help="where to install for packaging")
    made.add_argument("--prefix", type=_absolute, default="/usr/local", help="of the command")
    made.add_argument(
        "--libdir",
        type=_absolute,
        default=built.DEFAULT_LIB,
        help="CRIU's plugin directory (default: %(default)s)",
    )
    made.add_argument(
        "--runtime",
        choices=runtimes.RUNTIMES,
        action="append",
        default=[],
        help="have this container runtime load plugins from the directory (podman runs one of"
        " them); not needed for the default directory",
    )
    made.add_argument("--no-command", action="store_true", help="make no link to the command")
    made.add_argument("--uninstall", action="store_true", help="undo an installation")
    return made


def main(arguments: list[str] | None = None) -> int:
    """Command line: ``install.py [--destdir D] [--prefix P] [--libdir DIR] [--uninstall] ...``.

    Args:
        arguments: those of the command line, without the program's name.

    Returns:
        The exit status.
    """
    options = parser().parse_args(arguments)
    destdir = os.path.abspath(options.destdir) if options.destdir.strip("/") else ""
    prefix = None if options.no_command else options.prefix
    target = Target(destdir, options.libdir, prefix)
    try:
        if options.uninstall:
            for line in runtimes.remove_libdir(target.libdir, target.settings):
                print(line)
            uninstall(target)
            print(f"criu-detached is not in {target.directory} any more")
        else:
            for name in options.runtime:
                runtimes.refuse_libdir(name, target.libdir, target.settings)
            install(target)
            _tell_runtimes(target, options.runtime)
            print(f"installed into {target.directory}; now run: {target.command} check")
    except (
        InstallError,
        runtimes.SettingsError,
        build.BuildError,
        OSError,
        subprocess.CalledProcessError,
    ) as error:
        print(f"install: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
