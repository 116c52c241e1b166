"""What goes from machine to machine: archives and notes, in a directory that all are shown."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..integration.harness import look
from ..integration.harness.scenario import difference_of

CARRIED = Path(os.environ.get("CRIU_DETACHED_CARRIED", "/nowhere"))


@dataclass(frozen=True)
class Luggage:
    """What one traveller takes along."""

    directory: Path

    def pack(self, name: str, tree: Path) -> None:
        """Archive a directory with all that is in it."""
        self._tar("--create", "--sparse", name, tree, ".")

    def unpack(self, name: str, tree: Path) -> Path:
        """Fill a directory from an archive; it may be there. Returns it."""
        tree.mkdir(parents=True, exist_ok=True)
        self._tar("--extract", "--preserve-permissions", name, tree)
        return tree

    def _tar(self, verb: str, how: str, name: str, tree: Path, *members: str) -> None:
        archive = self.directory / f"{name}.tar"
        command = ["tar", verb, how, "--file", str(archive), "--directory", str(tree), *members]
        subprocess.run(command, check=True)

    def note(self, **facts: Any) -> None:
        """Write down what the next machine has to know."""
        (self.directory / "notes.json").write_text(json.dumps(facts))

    def notes(self) -> dict[str, Any]:
        """What the last machine has written down."""
        notes: dict[str, Any] = json.loads((self.directory / "notes.json").read_text())
        return notes


def noted(seen: look.Seen) -> dict[str, Any]:
    """What is seen of processes that must be the same on another machine, as notes have it.

    The runner's mounts are the machine's own, and those of all that has no other ones.
    """
    facts = asdict(seen)
    if facts.pop("runner_mounts"):
        facts.pop("mounts")
    found: dict[str, Any] = json.loads(json.dumps(facts))
    return found


def assert_same(before: dict[str, Any], after: look.Seen) -> None:
    """What is seen now is what was noted."""
    assert noted(after) == before, difference_of(before, noted(after))


def machine() -> dict[str, str]:
    """What tells this machine from another one."""
    command = ["findmnt", "--noheadings", "--output", "UUID", "/"]
    uuid = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    return {"root": uuid, "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip()}
