"""How the demo tells what happens."""

from __future__ import annotations

import platform

from tests.integration.harness import criu, kernel, look

Mounts = dict[int, tuple[str, int]]

_steps = iter(range(1, 100))


def step(text: str) -> None:
    """Print a numbered step."""
    print(f"{next(_steps):>2}. {text}")


def note(text: str) -> None:
    """Print what belongs to the step before."""
    print(f"    {text}")


def header() -> str:
    """What the demo runs on."""
    return f"Linux {platform.release()}, CRIU {criu.version()}; {_kernel_path()}"


def detached_files(pid: int) -> Mounts:
    """The files that a process has on detached mounts: link and mount id, by fd."""
    return {
        fd: (file.link, file.mnt_id)
        for fd, file in sorted(look.open_files(pid).items())
        if file.link.startswith("/") and look.is_detached(pid, fd)
    }


def table(before: Mounts, after: Mounts) -> None:
    """What was on which mount."""
    assert before.keys() == after.keys(), f"{before} became {after}"
    width = max(len(link) for link, _ in before.values())
    print(f"\n   {'fd':>4}  {'file':<{width}} {'mount before':<18} mount after")
    for fd, (link, mnt_id) in before.items():
        new_link, new_id = after[fd]
        assert link == new_link, f"{link} became {new_link}"
        old, new = f"{mnt_id} (detached)", f"{new_id} (detached)"
        print(f"   {fd:>4}  {link:<{width}} {old:<18} {new}")
    assert len({mnt_id for _, mnt_id in after.values()}) == 1, "one mount became two"
    print()


def _kernel_path() -> str:
    """Which way the kernel offers to tell a detached mount from others."""
    if kernel.has_statmount_by_fd():
        return "detached mounts are told by STATMOUNT_BY_FD"
    return "detached mounts are told by the fallback (no STATMOUNT_BY_FD before Linux 7.0)"
