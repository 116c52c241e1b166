# SPDX-License-Identifier: GPL-2.0-only
"""What ``criu-detached show`` tells: the detached mounts of an image directory.

It reads the record file and the settings, and asks the kernel nothing, so it works on any
machine that the images are on.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from criu_detached.errors import DetachedError, quote, why
from criu_detached.images.record_reader import Records, read_records
from criu_detached.images.recordfile import NAME, damaged
from criu_detached.images.records import BIND_SOURCE, RECREATED, REMOUNT, SUPPLIED, Mount
from criu_detached.images.wire import WireError
from criu_detached.settings import IMAGES_FILE, SOURCE, Options, escape, place_of

_HEAD = ("ID", "TYPE", "FILES", "ROOT", "COMES FROM")


def show(images: Path) -> list[str]:
    """Tell of the detached mounts of images.

    Args:
        images: the directory.

    Returns:
        The lines of a table. Names are as settings have them, so all characters are printable.

    Raises:
        DetachedError: there are no records, or they or the settings are bad.
    """
    try:
        directory = os.open(images, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise DetachedError(f"can't open {quote(os.fsencode(images))}: {why(error)}") from error
    try:
        if NAME not in os.listdir(directory):
            raise DetachedError(
                f"{NAME} is missing from {quote(os.fsencode(images))}: no process had a file on a"
                " detached mount, or this is not the directory of the images"
            )
        records = read_records(directory)
        options = Options(directory, [])
    finally:
        os.close(directory)
    try:
        files = Counter(mnt_id for mnt_id, _ in [*records.files, *records.ghosts])
    except WireError as error:
        raise damaged(error) from error
    return list(_table([_HEAD, *_rows(records, options, files)]))


def _rows(records: Records, options: Options, files: Counter[int]) -> Iterator[tuple[str, ...]]:
    for mnt_id, mount in sorted(records.mounts.items()):
        fs_type = mount.superblock.fs_type if mount.superblock else b""
        root = escape(mount.root) or "?"
        if mount.root_type != stat.S_IFDIR:
            root += " (a file)"
        origin = _origin(mount, records, options)
        yield (str(mnt_id), escape(fs_type) or "?", str(files[mnt_id]), root, origin)


def _origin(mount: Mount, records: Records, options: Options) -> str:
    """Say where a mount comes back from: what the user supplies goes first."""
    given = options.source_of(mount)
    if given is not None:
        source, beneath = given
        path = source.path.rstrip(b"/") + (b"" if beneath == b"." else b"/" + beneath)
        return f"supplied: {escape(path or b'/')} ({source.where})"
    if mount.origin == BIND_SOURCE and mount.bind_source:
        namespace = " in the dumped mount namespace" if mount.bind_source.in_namespace else ""
        return f"bind source: {escape(place_of(mount.bind_source))}{namespace}"
    filesystem = records.filesystems.get(mount.filesystem)
    if mount.origin == REMOUNT and filesystem:
        return f"mounted again: {escape(filesystem.source)}"
    if mount.origin == RECREATED:
        return "made anew, with its contents"
    if mount.origin == SUPPLIED:
        return f'to be supplied: "{quote(SOURCE)} {mount.mnt_id} PATH" in {IMAGES_FILE}'
    return f"unknown (origin {mount.origin})"


def _table(rows: list[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()
