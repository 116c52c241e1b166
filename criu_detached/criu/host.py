# SPDX-License-Identifier: GPL-2.0-only
"""What surrounds the package inside CRIU: CRIU itself, its fds, and the C parts of the plugin."""

from __future__ import annotations

from criu_detached.criu.criu import Criu
from criu_detached.criu.fast_path import FastPath
from criu_detached.criu.fd_store import FdStore
from criu_detached.criu.shared_numbers import SharedNumbers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Host:
    """CRIU and what is beside it, made once at the start. Tests make one of stand-ins."""

    __slots__ = ("criu", "fast_path", "fds", "shared")

    def __init__(self, ffi: Any, lib: Any) -> None:
        """Find them.

        Args:
            ffi: of the embedded module.
            lib: its functions.
        """
        functions = lib.the_host()
        self.criu = Criu(ffi, functions)
        self.fast_path = FastPath(ffi, lib)
        self.shared = SharedNumbers(lib)
        self.fds = FdStore(functions)
