"""How a filesystem comes to be held by one process alone."""

from __future__ import annotations

import subprocess

import pytest

from .harness import kernel
from .harness.placement import INSIDE, Placement
from .harness.scenario import Scenario

# On the host; and in a namespace of the process, where the host alone, both, or that alone had it.
SOLE = pytest.mark.parametrize("placement", list(Placement), ids=lambda placement: placement.value)
# In the namespace of criu, and in one that is dumped and has no other mount of the filesystem.
PLACES = pytest.mark.parametrize("placement", [Placement.HOST, Placement.NAMESPACE_TMPFS], ids=str)


def sole(held: Scenario) -> Scenario:
    """Unmount the source wherever it is: from now on the process alone holds the filesystem."""
    placement = held.ground.placement
    if placement in (Placement.NAMESPACE, Placement.NAMESPACE_TMPFS):
        # With its PID namespace, for umount reads /proc there.
        enter = [
            "nsenter",
            *(
                f"--{kind}=/proc/{held.pid}/ns/{short}"
                for kind, short in (("mount", "mnt"), ("pid", "pid"))
            ),
        ]
        umount = ["umount", "--lazy", "--no-mtab", str(INSIDE / "source")]
        subprocess.run([*enter, *umount], check=True)
    if placement is not Placement.NAMESPACE_TMPFS:
        kernel.umount2(held.ground.source, kernel.MNT_DETACH)
    return held
