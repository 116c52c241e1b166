# SPDX-License-Identifier: GPL-2.0-only
"""Mounting filesystems, and changing the options of mounted ones."""

from __future__ import annotations

import os

from criu_detached._kernel import ffi, lib
from criu_detached.kernel.calls import checked_fd
from criu_detached.kernel.fds import Fd
from criu_detached.kernel.files import O_PATH
from criu_detached.kernel.mounts import attach

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

# linux/mount.h: fsconfig(2)
_FSCONFIG_SET_FLAG, _FSCONFIG_SET_STRING = 0, 1
_FSCONFIG_CMD_CREATE, _FSCONFIG_CMD_RECONFIGURE = 6, 7


def new_mount(
    fs_type: bytes, source: bytes, options: list[bytes], fds: Iterable[tuple[bytes, int]] = ()
) -> Fd:
    """Mount a filesystem: fsopen(2), fsconfig(2) and fsmount(2), Linux 5.2.

    Args:
        fs_type: its type.
        source: as mount(8) takes it.
        options: of the superblock, each "name" or "name=value".
        fds: options that take an open file.

    Returns:
        A tree fd of the mount, the caller's. It is in no namespace.

    Raises:
        OSError: as mount(2); the text has what the filesystem says.
    """
    with checked_fd(lib.sys_fsopen(fs_type), "fsopen") as fd:
        if source:
            _configure(fd, _FSCONFIG_SET_STRING, b"source", source)
        _set_options(fd, options)
        for name, opened in fds:
            _tell(fd, name, lib.sys_fsconfig_fd(fd, name, opened))
        _configure(fd, _FSCONFIG_CMD_CREATE, ffi.NULL, ffi.NULL)
        return checked_fd(lib.sys_fsmount(fd, 0), "fsmount")


def remount(tree: int, options: list[bytes]) -> None:
    """Change options of a mounted superblock: fspick(2), as mount(8) does with remount.

    Args:
        tree: the root of one of its mounts.
        options: as of new_mount.

    Raises:
        OSError: as mount(2); the text has what the filesystem says.
    """
    with checked_fd(lib.sys_fspick(tree), "fspick") as fd:
        _set_options(fd, options)
        _configure(fd, _FSCONFIG_CMD_RECONFIGURE, ffi.NULL, ffi.NULL)


def refused_options(fs_type: bytes, options: list[bytes]) -> list[tuple[bytes, OSError]]:
    """Return the options that a type of filesystem does not take; nothing is mounted.

    Args:
        fs_type: its type.
        options: as of new_mount.

    Returns:
        Each with the error.

    Raises:
        OSError: there is no such type.
    """
    refused = []
    with checked_fd(lib.sys_fsopen(fs_type), "fsopen") as fd:
        for option in options:
            try:
                _set_option(fd, option)
            except OSError as error:
                refused.append((option, error))
    return refused


def _set_options(fd: int, options: list[bytes]) -> None:
    for option in options:
        _set_option(fd, option)


def _set_option(fd: int, option: bytes) -> None:
    name, equals, value = option.partition(b"=")
    if equals:
        _configure(fd, _FSCONFIG_SET_STRING, name, value)
    else:
        _configure(fd, _FSCONFIG_SET_FLAG, name, ffi.NULL)


def _configure(fd: int, command: int, key: Any, value: Any) -> None:
    _tell(fd, key, lib.sys_fsconfig(fd, command, key, value))


def _tell(fd: int, key: Any, result: int) -> None:
    """Raise OSError, with what the filesystem says, where fsconfig(2) failed."""
    if result < 0:
        said = [os.strerror(-result)]
        try:
            while message := os.read(fd, 4096):  # "e ext4: ...", one at a time
                said.append(message.decode("ascii", "backslashreplace").strip())
        except OSError:
            pass  # ENODATA: that was all
        what = key.decode("ascii", "backslashreplace") if key else "fsconfig"
        raise OSError(-result, f"{what}: {'; '.join(said)}")


def attach_at_root(tree: int) -> None:
    """Attach a tree on top of all that is there, to look at it in a private mount namespace."""
    with Fd.open("/", O_PATH) as root:
        attach(tree, root)
