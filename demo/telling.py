"""How the demo tells what happens: headings, notes, and what was on which mount."""

from __future__ import annotations

import ctypes
import platform

from tests.integration.harness import criu, kernel, look

Mounts = dict[int, tuple[str, int]]

_AT_FDCWD = -100
_STATX_MNT_ID_UNIQUE = 0x4000  # Linux 6.8: a number that no other mount gets until a reboot
_STX_MNT_ID = 144  # its offset in struct statx
_headings = iter(range(1, 100))


def heading(text: str) -> None:
    """Print the numbered heading of a part."""
    line = f"{next(_headings)}. {text}"
    print(f"\n{line}\n{'-' * len(line)}")


def note(text: str) -> None:
    """Print what was seen, beneath the command that showed it."""
    print(f"    {text}")


def header() -> str:
    """What the demo runs on."""
    return f"Linux {platform.release()}, CRIU {criu.version()}; {_kernel_path()}"


def detached_files(pid: int) -> Mounts:
    """The files that a process has on detached mounts: link and mount id, by fd."""
    return {
        fd: (file.link, _unique_id(pid, fd) or file.mnt_id)
        for fd, file in sorted(look.open_files(pid).items())
        if file.link.startswith("/") and look.is_detached(pid, fd)
    }


def table(before: Mounts, after: Mounts) -> None:
    """What was on which mount: the same files, on one new mount that is detached again."""
    assert before.keys() == after.keys(), f"{before} became {after}"
    assert before, "no file is on a detached mount"
    width = max(len(link) for link, _ in before.values())
    print(f"\n   {'fd':>4}  {'file':<{width}}  {'mount before':<21}  mount after")
    for fd, (link, mnt_id) in before.items():
        new_link, new_id = after[fd]
        assert link == new_link, f"{link} became {new_link}"
        old, new = f"{mnt_id} (detached)", f"{new_id} (detached)"
        print(f"   {fd:>4}  {link:<{width}}  {old:<21}  {new}")
    ids = {mnt_id for _, mnt_id in after.values()}
    assert len(ids) == 1, "one mount became two"
    if _unique_id("self", 0):
        assert not ids & {mnt_id for _, mnt_id in before.values()}, "the mount is the old one"
    else:
        note("(before Linux 6.8 a new mount may have the number of one that is gone)")
    print()


def _unique_id(pid: int | str, fd: int) -> int:
    """The number of the mount that a file is on; 0 where the kernel has none for good."""
    answer = ctypes.create_string_buffer(256)
    libc = ctypes.CDLL(None, use_errno=True)
    path = f"/proc/{pid}/fd/{fd}".encode()
    if libc.statx(_AT_FDCWD, path, 0, _STATX_MNT_ID_UNIQUE, answer):
        return 0
    if not int.from_bytes(answer.raw[:4], "little") & _STATX_MNT_ID_UNIQUE:
        return 0
    return int.from_bytes(answer.raw[_STX_MNT_ID : _STX_MNT_ID + 8], "little")


def _kernel_path() -> str:
    """Which way the kernel offers to tell a detached mount from others."""
    if kernel.has_statmount_by_fd():
        return "detached mounts are told by STATMOUNT_BY_FD"
    return "detached mounts are told by the fallback (no STATMOUNT_BY_FD before Linux 7.0)"
