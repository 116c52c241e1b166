# SPDX-License-Identifier: GPL-2.0-only
"""What ``criu-detached check`` looks at: kernel, CRIU, the built plugin, and all together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from criu_detached.command.built import PARTS, check_parts
from criu_detached.command.judge import check_trial
from criu_detached.command.line import FAIL, WARN, Line
from criu_detached.command.programs import check_criu, find_criu
from criu_detached.command.system import check_calls, check_kernel
from criu_detached.command.writers import check_writers


def check(lib: Path, criu: str | None) -> Iterator[Line]:
    """Yield the lines, as they are found.

    Args:
        lib: the plugin directory.
        criu: a path or name of the program; None means "criu".
    """
    yield check_kernel()
    yield check_calls()
    program = find_criu(criu)
    needed = [check_criu(program, criu), check_parts(lib)]
    if (lib / PARTS[0]).exists():
        needed.append(check_writers(lib, program))
    yield from needed
    if program is None or any(line.state == FAIL for line in needed):
        # Nor does root run what others can write.
        yield Line(WARN, "trial", "not made: put right what failed above, then check again")
    else:
        yield check_trial(lib, program)
