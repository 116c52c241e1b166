"""Processes on lazily unmounted mounts: dumped, restored, and none the worse for it."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

sys.path.pop(0)  # else this file would be the package demo
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from demo import accounts, container, server, sole, telling
from tests.integration.harness.criu import has_plugin
from tests.integration.harness.scenario import prepare_runner


def main() -> int:
    """Run the demonstration; 0 when every step went as it should."""
    # Line by line, also into a pipe or a file.
    assert isinstance(sys.stdout, io.TextIOWrapper)
    sys.stdout.reconfigure(line_buffering=True)
    if os.geteuid():
        print("The demo dumps and restores processes, which needs root.")
        return 1
    if not has_plugin():
        print("The plugin is not built: run make plugin.")
        return 1
    prepare_runner()
    print(telling.header())
    print(f"What follows a $ can be repeated by hand{_where()}.")
    try:
        for part in (accounts, server, sole, container):
            part.demonstrate()
    except AssertionError as failure:
        print(f"\nFAILED: {failure}")
        return 1
    print("\nThe demo worked.")
    return 0


def _where() -> str:
    """Where the commands find what the demo finds."""
    ground = os.environ.get("CRIU_DETACHED_GROUND")  # from setup_kernel.sh
    return f", as root, in: ./setup_kernel.sh {ground} bash" if ground else ", as root"


if __name__ == "__main__":
    sys.exit(main())
