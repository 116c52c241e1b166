"""What is put in the way of a restore, and a program that has to go that way."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import kernel
from .agent import Check, Task


def hold_inner(task: Task) -> Check:
    """Files one and two directories deep, plain ones and such as only Python opens."""
    plain = os.open(task.path("dir/inner"), os.O_RDWR)
    os.chdir(task.path("dir"))
    null = os.open(task.path("null"), os.O_RDWR)
    task.detach()
    return lambda: [os.pread(plain, 100, 0).decode(), os.listdir("."), os.write(null, b"x")]


@contextmanager
def instead(path: Path, make: Callable[[Path], Any]) -> Iterator[None]:
    """Put something else in a file's place for a while."""
    kept = path.rename(path.with_name("kept"))
    make(path)
    try:
        yield
    finally:
        if path.is_dir() and not path.is_symlink():
            while path.is_mount():
                kernel.umount2(path, kernel.MNT_DETACH)
            path.rmdir()
        else:
            path.unlink()
        kept.rename(path)


def symlink_to(target: Path | str) -> Callable[[Path], None]:
    """Makes a symlink there."""
    return lambda path: path.symlink_to(target)
