# SPDX-License-Identifier: GPL-2.0-only
"""What the kernel has of what the plugin needs.

Nothing of the plugin that may be missing is imported at module level: it is reported.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from typing import Any

from criu_detached.command.built import INSTALL
from criu_detached.command.line import FAIL, OK, WARN, Line
from criu_detached.errors import why


def check_kernel() -> Line:
    """By which means are detached mounts told from others on this kernel (see classify.py)?"""
    subject = f"kernel {os.uname().release}"
    try:
        _, namespaces, statmount = _kernel()
    except ImportError as error:
        return _not_built(subject, error)
    if statmount.has_by_fd():
        return Line(OK, subject, "detached mounts are found by STATMOUNT_BY_FD")
    found = "no STATMOUNT_BY_FD (Linux 7.0), so detached mounts are found by the fallback:"
    try:
        list(namespaces.mount_ns_ids())
    except OSError:
        if os.geteuid():
            return Line(WARN, subject, f"{found} which one, only root is told: run this as root")
        return Line(
            WARN,
            subject,
            f"{found} the mountinfo of every process, for it walks no mount namespaces (Linux 6.12,"
            " outside of containers). A mount in a namespace without processes passes for detached",
        )
    return Line(OK, subject, f"{found} a walk over all mount namespaces")


def check_calls() -> Line:
    """Does the kernel have the system calls that a restore cannot do without?"""
    subject = "system calls"
    try:
        kernel, *_ = _kernel()
    except ImportError as error:
        return _not_built(subject, error)
    root = os.open("/", kernel.O_PATH)
    try:
        refused = list(_refused(kernel, root))
    finally:
        os.close(root)
    if refused:
        text = ", ".join(refused)
        return Line(FAIL, subject, f"{text}: run a newer kernel, or allow them in the container")
    return Line(OK, subject, "openat2, open_tree and mount_setattr are there")


def _refused(kernel: Any, root: int) -> Iterator[str]:
    """Make each call in a way that changes nothing; yield those that fail."""
    calls: tuple[tuple[str, Callable[[], None]], ...] = (
        (
            "openat2 (Linux 5.6)",
            lambda: os.close(kernel.openat2(root, b".", kernel.O_PATH, kernel.RESOLVE_BENEATH)),
        ),
        (
            "open_tree (Linux 5.2)",
            lambda: os.close(kernel.open_tree(root, b".", kernel.OPEN_TREE_CLOEXEC)),
        ),
        ("mount_setattr (Linux 5.12)", lambda: kernel.mount_setattr(root, 0, 0)),
    )
    for name, call in calls:
        try:
            call()
        except OSError as error:
            # The last one is root's alone.
            if os.geteuid() == 0 or error.errno != errno.EPERM:
                yield f"{name} fails ({why(error)})"


def _kernel() -> tuple[Any, Any, Any]:
    """Import the plugin's system calls; they need its compiled module."""
    from criu_detached import kernel
    from criu_detached.kernel import namespaces, statmount

    return kernel, namespaces, statmount


def _not_built(subject: str, error: ImportError) -> Line:
    return Line(
        FAIL,
        subject,
        f"not known, for the plugin's compiled module is missing ({error}): {INSTALL}, and name"
        " its directory with --lib DIR if it is another one",
    )
