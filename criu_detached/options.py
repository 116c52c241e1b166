# SPDX-License-Identifier: GPL-2.0-only
"""Settings of the plugin, for one run of criu or for the whole machine.

Later places win: /etc/criu/criu-detached.conf, criu-detached.conf in the image directory,
and criu's own --plugin-option criu_detached.NAME=VALUE (CRIU 4.3 and newer). Files have
one setting a line, a name and a value, and comments after ``#``, as CRIU's own have
(criu/config.c).
"""

from __future__ import annotations

import os

from criu_detached.errors import DetachedError, quote, reason

SYSTEM_FILE = "/etc/criu/criu-detached.conf"
IMAGES_FILE = "criu-detached.conf"
_PREFIX = b"--criu_detached."
_MAX_FILE = 1 << 20  # bytes

GHOST_LIMIT = b"ghost-limit"
_NAMES = {GHOST_LIMIT}

# DEFAULT_GHOST_LIMIT of criu/include/cr_options.h, bytes
DEFAULT_GHOST_LIMIT = 1 << 20

_UNITS = {b"K": 10, b"M": 20, b"G": 30}


class Options:
    """The settings that are in force."""

    def __init__(self, image_dir: int, plugin_options: list[bytes]) -> None:
        """Read them.

        Args:
            image_dir: fd of the image directory; it stays the caller's.
            plugin_options: criu's, each "--NAME=VALUE"; those of other plugins are left.

        Raises:
            DetachedError: a file cannot be read, or a setting is unknown or malformed.
        """
        self._values: dict[bytes, bytes] = {}
        self._read_file(SYSTEM_FILE, None)
        self._read_file(IMAGES_FILE, image_dir)
        for option in plugin_options:
            if option.startswith(_PREFIX):
                name, _, value = option[len(_PREFIX) :].partition(b"=")
                self._set(name, value, "--plugin-option")

    @property
    def ghost_limit(self) -> int:
        """Bytes on disk that a deleted file may have, as of criu's --ghost-limit."""
        text = self._values.get(GHOST_LIMIT)
        return DEFAULT_GHOST_LIMIT if text is None else parse_size(text)

    def _read_file(self, name: str, directory: int | None) -> None:
        for line in _read(name, directory).split(b"\n"):
            words = line.split(b"#")[0].split(None, 1)
            if words:
                self._set(words[0], words[1].strip() if len(words) > 1 else b"", name)

    def _set(self, name: bytes, value: bytes, where: str) -> None:
        if name not in _NAMES:
            raise DetachedError(f"{where}: there is no setting {quote(name)}")
        if name == GHOST_LIMIT:
            parse_size(value)
        self._values[name] = value


def parse_size(text: bytes) -> int:
    """Turn "1048576", "1024K", "1M" or "1G" into bytes; raises DetachedError."""
    shift = _UNITS.get(text[-1:].upper(), 0)
    digits = text[:-1] if shift else text
    if not digits.isdigit() or len(digits) > 15:
        raise DetachedError(f"{quote(text)} is no size: give bytes, or a number with K, M or G")
    return int(digits) << shift


def _read(name: str, directory: int | None) -> bytes:
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=directory)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise DetachedError(f"can't open {name}: {reason(error.errno or 0)}") from error
    try:
        data = os.read(fd, _MAX_FILE)
    except OSError as error:
        raise DetachedError(f"can't read {name}: {reason(error.errno or 0)}") from error
    finally:
        os.close(fd)
    return data
