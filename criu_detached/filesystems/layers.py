# SPDX-License-Identifier: GPL-2.0-only
"""The layers of an overlay, the directories that it is mounted of: named, opened, recorded."""

from __future__ import annotations

import errno
import os

from criu_detached import kernel
from criu_detached.errors import DetachedError, quote, why
from criu_detached.filesystems.superblock import superblock_of
from criu_detached.images.records import Layer
from criu_detached.kernel import new_mounts
from criu_detached.kernel.fds import Fd, Fds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# Options that name a directory (fs/overlayfs/params.c). With one for each layer no separator
# is needed.
UPPER, WORK, LOWER, DATA = b"upperdir", b"workdir", b"lowerdir+", b"datadir+"
_MANY_LOWER = b"lowerdir"


def split_layers(options: list[bytes]) -> tuple[list[tuple[bytes, bytes]], list[bytes]]:
    r"""Tell the layers of an overlay from its other options.

    A "lowerdir" lists several, with escapes, and with "::" before those that hold data alone
    (ovl_parse_param_lowerdir, fs/overlayfs/params.c).

    Args:
        options: all that the overlay has.

    Returns:
        Option and path of each layer, and the options that name none.
    """
    layers: list[tuple[bytes, bytes]] = []
    others = []
    for option in options:
        name, _, value = option.partition(b"=")
        if name == _MANY_LOWER:
            layers += _split_lower(value)
        elif name in (UPPER, WORK):
            layers.append((name, _path_of_upper(value)))
        elif name in (LOWER, DATA):
            layers.append((name, value))
        else:
            others.append(option)
    return layers, others


def _path_of_upper(value: bytes) -> bytes:
    """Return the path in an "upperdir" or "workdir".

    It has escapes, unless the directory was given as an fd.
    """
    path = unescape(value)
    return path if kernel.is_directory(path) else value


def _split_lower(value: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield option and path of each layer that a "lowerdir" lists."""
    option, path, at = LOWER, b"", 0
    while at < len(value):
        if value[at : at + 1] == b"\\":
            path += value[at : at + 2]
            at += 2
        elif value[at : at + 1] == b":":
            yield option, unescape(path)
            data = value[at : at + 2] == b"::"
            option, path = DATA if data else LOWER, b""
            at += 2 if data else 1
        else:
            path += value[at : at + 1]
            at += 1
    yield option, unescape(path)


def unescape(path: bytes) -> bytes:
    r"""Return a path without the backslashes before characters that would mean something else."""
    head, *parts = path.split(b"\\")
    text, literal = head, False
    for part in parts:
        if not part and not literal:
            text, literal = text + b"\\", True  # a backslash before a backslash
        else:
            text, literal = text + part, False
    return text


class Layers:
    """The directories of an overlay, opened in a private mount namespace."""

    def __init__(self, layers: list[tuple[bytes, bytes]]) -> None:
        """Open them.

        Args:
            layers: option and path of each.

        Raises:
            DetachedError: one of them cannot be reached.
        """
        self.paths = [path for _, path in layers]
        self.fds: list[tuple[bytes, int]] = []
        self._owner = Fds()
        try:
            for option, path in layers:
                self.fds.append((option, self._owner.add(_open_layer(option, path))))
        except DetachedError:
            self.close()
            raise

    def __enter__(self) -> Layers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the directories."""
        self._owner.close()
        self.fds.clear()

    def find(self, option: bytes) -> int:
        """Return the fd of the first directory that an option names; -1: there is none."""
        return next((fd for name, fd in self.fds if name == option), -1)

    def records(self) -> list[Layer]:
        """Return the records by which a restore tells whether the directories are the same."""
        return [
            Layer(
                option=option,
                path=path,
                superblock=superblock_of(fd, b""),
                ino=kernel.fstat(fd).ino,
            )
            for path, (option, fd) in zip(self.paths, self.fds, strict=True)
        ]


def _open_layer(option: bytes, path: bytes) -> Fd:
    what = f"the directory {quote(path)} ({quote(option)}) of the overlay"
    if not path.startswith(b"/"):
        raise DetachedError(f"{what} is no absolute path: where it starts is not known")
    try:
        return Fd.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise DetachedError(f"{what} cannot be opened where criu runs: {why(error)}") from error


def is_in_use(upper: int) -> bool:
    """Tell whether a directory is the upper or work directory of an overlay that is mounted.

    An overlay of it is asked for, with a work directory that the kernel refuses: it looks at the
    upper directory first, and answers EBUSY (ovl_get_upper and ovl_get_workdir,
    fs/overlayfs/super.c). So nothing is mounted or written. For a private mount namespace.

    Args:
        upper: fd of the directory.

    Raises:
        OSError: the answer is another.
    """
    with new_mounts.new_mount(b"tmpfs", b"tmpfs", []) as other:
        fds = [(LOWER, int(other)), (UPPER, upper), (WORK, int(other))]
        try:
            new_mounts.attach_at_root(other)
            new_mounts.new_mount(b"overlay", b"overlay", [b"index=on"], fds).close()
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.EINVAL):
                raise
            return error.errno == errno.EBUSY
    raise OSError(errno.EINVAL, "an overlay with two filesystems to write to was mounted")
