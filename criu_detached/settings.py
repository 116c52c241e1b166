# SPDX-License-Identifier: GPL-2.0-only
"""Settings of the plugin, for one run of criu or for the whole machine.

Later places win: /etc/criu/criu-detached.conf, criu-detached.conf in the image directory,
and criu's own --plugin-option criu_detached.NAME=VALUE (CRIU 4.3 and newer). Files have
one setting a line, a name and a value, and comments after ``#``, as CRIU's own have
(criu/config.c). In a path any character can be written as in fstab(5): a backslash and its
three octal digits.
"""

from __future__ import annotations

import os
import stat

from criu_detached.errors import DetachedError, quote, why
from criu_detached.images.records import BIND_SOURCE
from criu_detached.kernel.fds import Fd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.images.records import BindSource, Mount

SYSTEM_FILE = "/etc/criu/criu-detached.conf"
IMAGES_FILE = "criu-detached.conf"
# In messages of a dump
WHERE = f"to {SYSTEM_FILE} or to {IMAGES_FILE} in the image directory before the dump"
OPTION = "--plugin-option"
_PREFIX = b"--criu_detached."
_MAX_FILE = 1 << 20  # bytes

GHOST_LIMIT = b"ghost-limit"
EXTERNAL = b"external"  # at dump: the user will provide the mount
SOURCE = b"source"  # at restore: where a mount is
MAP = b"map"  # at restore: where bind sources are that were elsewhere at the dump

_ALL = b"all"

# DEFAULT_GHOST_LIMIT of criu/include/cr_options.h, bytes
DEFAULT_GHOST_LIMIT = 1 << 20

_UNITS = {b"K": 10, b"M": 20, b"G": 30}


class GivenPath:
    """A path that the user gives for a mount, or for what a path begins with."""

    __slots__ = ("path", "where")

    def __init__(self, path: bytes, where: str) -> None:
        self.path = path  # absolute
        self.where = where  # the setting stands, for messages


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
        # Bytes on disk that a deleted file may have, as of criu's --ghost-limit.
        self.ghost_limit = DEFAULT_GHOST_LIMIT
        self.sources: dict[int, GivenPath] = {}  # by mount id
        self.maps: dict[bytes, GivenPath] = {}  # by the place at the dump
        self.external_ids: set[int] = set()
        self.external_all = False  # all that have no source
        self._read_file(SYSTEM_FILE, None)
        self._read_file(IMAGES_FILE, image_dir)
        for option in plugin_options:
            if option.startswith(_PREFIX):
                name, _, value = option[len(_PREFIX) :].partition(b"=")
                self._set(name, value, b":", OPTION)

    def source_of(self, mount: Mount) -> tuple[GivenPath, bytes] | None:
        """Look for what is said of a mount.

        Args:
            mount: its record, as the dump made it.

        Returns:
            The setting for it, or else the longest map of its bind source where criu runs; and
            what is to be appended to that path ("." for nothing). None: nothing is said of it.
        """
        if mount.mnt_id in self.sources:
            return self.sources[mount.mnt_id], b"."
        source = mount.bind_source
        if mount.origin != BIND_SOURCE or source is None or source.in_namespace:
            return None
        place = place_of(source)
        for old in sorted(self.maps, key=len, reverse=True):
            prefix = old.rstrip(b"/") + b"/"
            if (place + b"/").startswith(prefix):
                return self.maps[old], place[len(prefix) :] or b"."
        return None

    def _read_file(self, name: str, directory: int | None) -> None:
        for line in _read(name, directory).split(b"\n"):
            words = line.split(b"#")[0].split(None, 1)
            if words:
                self._set(words[0], words[1].strip() if len(words) > 1 else b"", None, name)

    def _set(self, name: bytes, value: bytes, separator: bytes | None, where: str) -> None:
        """Take a setting; a later one of the same name and subject wins.

        Args:
            name: of the setting.
            value: as it is written.
            separator: between the words of the value; None is white space.
            where: it is written, for messages.

        Raises:
            DetachedError: it is unknown or malformed.
        """
        try:
            if name == GHOST_LIMIT:
                self.ghost_limit = parse_size(value)
            elif name == EXTERNAL and value == _ALL:
                self.external_all = True
            elif name == EXTERNAL:
                self.external_ids.add(_mount_id(value))
            elif name == SOURCE:
                mnt_id, path = _two(value, separator, "a mount id and a path")
                number = _mount_id(mnt_id)
                self.sources[number] = GivenPath(_absolute(path), where)
            elif name == MAP:
                old, new = _two(value, separator, "two paths")
                self.maps[_absolute(old)] = GivenPath(_absolute(new), where)
            else:
                raise DetachedError("there is no such setting")
        except DetachedError as error:
            raise DetachedError(f"{where}: {quote(name)}: {error}") from error


def _two(value: bytes, separator: bytes | None, wanted: str) -> list[bytes]:
    """Split a value into two words, which are what is wanted; raises DetachedError."""
    words = value.split(separator)
    if len(words) != 2:
        raise DetachedError(
            f"{_shown(value)} is not {wanted} (write a blank in a path as \\040, a colon as \\072)"
        )
    return words


def _shown(value: bytes) -> str:
    """Quote a value for a message; say so where there is none."""
    return quote(value) or "an empty value"


def _mount_id(text: bytes) -> int:
    """Turn the digits of a mount id into a number; raises DetachedError."""
    if not text.isdigit() or len(text) > 10:
        raise DetachedError(
            f"{_shown(text)} is no mount id (CRIU's log and criu-detached show have them)"
        )
    return int(text)


def _absolute(text: bytes) -> bytes:
    """Return the path that a setting means: without escapes, and without "." and empty names."""
    head, *parts = text.split(b"\\")
    for part in parts:
        octal = part[:3]
        if len(octal) < 3 or octal.strip(b"01234567") or octal > b"377" or octal == b"000":
            raise DetachedError(
                f"{quote(text)} has a backslash without three octal digits (a backslash itself is"
                " \\134)"
            )
        head += bytes((int(octal, 8),)) + part[3:]
    if not head.startswith(b"/") or b"\0" in head:
        raise DetachedError(f"{quote(text)} is no absolute path")
    return _normal(head)


def place_of(source: BindSource) -> bytes:
    """Return the absolute path of a mount's root through its bind source."""
    return _normal(source.mountpoint + b"/" + source.path)


def _normal(path: bytes) -> bytes:
    return b"/" + b"/".join(name for name in path.split(b"/") if name not in (b"", b"."))


def escape(path: bytes) -> str:
    """Write a path as a setting has it, in printable characters alone."""
    plain = range(0x21, 0x7F)
    special = b"\\:#"
    return "".join(
        chr(byte) if byte in plain and byte not in special else f"\\{byte:03o}" for byte in path
    )


def parse_size(text: bytes) -> int:
    """Turn "1048576", "1024K", "1M" or "1G" into bytes; raises DetachedError."""
    shift = _UNITS.get(text[-1:].upper(), 0)
    digits = text[:-1] if shift else text
    if not digits.isdigit() or len(digits) > 15:
        raise DetachedError(f"{_shown(text)} is no size: give bytes, or a number with K, M or G")
    return int(digits) << shift


def _read(name: str, directory: int | None) -> bytes:
    """Return what is in a file of settings; nothing when it is not there.

    Args:
        name: of the file.
        directory: fd of the image directory; None: the file is the machine's.

    Raises:
        DetachedError: it cannot be read, or must not be trusted.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK
    if directory is not None:
        flags |= os.O_NOFOLLOW  # images are input
    try:
        opened = Fd.open(name, flags, directory)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise DetachedError(f"can't open {name}: {why(error)}") from error
    try:
        with opened as fd:
            _check_file(name, os.fstat(fd), images=directory is not None)
            text = os.read(fd, _MAX_FILE + 1)
    except OSError as error:
        raise DetachedError(f"can't read {name}: {why(error)}") from error
    if len(text) > _MAX_FILE:
        raise DetachedError(f"{name} has more than {_MAX_FILE} bytes: make it shorter")
    return text


def _check_file(name: str, found: os.stat_result, *, images: bool) -> None:
    """Refuse a file of the machine's settings that others than root could write.

    Settings give tasks what they name. Those beside the images are as trusted as the images,
    whoever they belong to.

    Raises:
        DetachedError: it is such a file, or no regular one.
    """
    if not stat.S_ISREG(found.st_mode):
        raise DetachedError(f"{name} is no regular file: write the settings to one, or remove it")
    if not images and (found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o022):
        raise DetachedError(
            f"{name} could be written by others than root (user {found.st_uid}, mode"
            f" {stat.S_IMODE(found.st_mode):o}): chown it to root, and chmod it to 644"
        )
