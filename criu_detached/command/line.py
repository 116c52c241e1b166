# SPDX-License-Identifier: GPL-2.0-only
"""The lines of ``criu-detached check``."""

from __future__ import annotations

from dataclasses import dataclass

OK, WARN, FAIL = "ok", "warn", "FAIL"


@dataclass(frozen=True)
class Line:
    """One line of the answer."""

    state: str
    subject: str
    text: str

    def __str__(self) -> str:
        return f"{self.state:<5} {self.subject}: {self.text}"
