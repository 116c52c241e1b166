# SPDX-License-Identifier: GPL-2.0-only
"""What ``criu-detached check`` looks at: kernel, CRIU, the built plugin, and all together.

Nothing of the plugin that may be missing is imported at module level: it is reported.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OK, WARN, FAIL = "ok", "warn", "FAIL"

# Where CRIU looks without --libdir and CRIU_LIBS_DIR, as Debian builds it (CR_PLUGIN_DEFAULT)
DEFAULT_LIB = Path("/usr/lib/criu")
OLDEST_CRIU = (4, 1)
# Root's PATH may lack them, for instance under su.
SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
TRIAL = Path(__file__).with_name("trial.py")
READY = "criu-detached: ready to dump"  # dump_init in plugin/dump.c
REBUILD = "build it again with make plugin or make install"

# What CRIU and the command begin with; that all else is there is shown by the trial.
PARTS = (
    "criu_detached.so",
    "criu_detached/embed.so",
    "criu_detached/criu-detached",
    "criu_detached/lib/criu_detached/__init__.py",
    "criu_detached/lib/criu_detached/entry.py",
    "criu_detached/lib/criu_detached/kernel/__init__.py",
    "criu_detached/lib/criu_detached/_kernel.*.so",
)

# Among the names of libraries that embed.so is linked with, those that are paths
_LINKED = re.compile(rb"\0(/[^\0]+\.so)(?=\0)")


@dataclass(frozen=True)
class Line:
    """One line of the answer."""

    state: str
    subject: str
    text: str

    def __str__(self) -> str:
        return f"{self.state:<5} {self.subject}: {self.text}"


def default_lib() -> Path:
    """Return the plugin directory that this file is part of, else CRIU's own."""
    # DIR/criu_detached/lib/criu_detached/command/check.py
    own = Path(__file__).resolve().parent.parent.parent.parent.parent
    return own if (own / PARTS[0]).exists() else DEFAULT_LIB


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


# --- the kernel ---


def _kernel() -> tuple[Any, Any, Any]:
    """Import the plugin's system calls; they need its compiled module."""
    from criu_detached import kernel
    from criu_detached.kernel import namespaces, statmount

    return kernel, namespaces, statmount


def _not_built(subject: str, error: ImportError) -> Line:
    return Line(
        FAIL,
        subject,
        f"not known, for the plugin's compiled module is missing ({error}): {REBUILD},"
        " and run the criu-detached command that lies in the built plugin",
    )


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
                yield f"{name} fails ({os.strerror(error.errno or 0)})"


# --- CRIU ---


def find_program(name: str) -> str | None:
    """Return the absolute path of a program that root finds, or None."""
    path = f"{os.environ.get('PATH', os.defpath)}:{SBIN}"
    found = shutil.which(name, path=path)
    return os.path.abspath(found) if found else None


def find_criu(criu: str | None) -> str | None:
    """Return the absolute path of the program, or None."""
    return find_program(criu or "criu")


def criu_version(program: str) -> str:
    """Return what ``criu --version`` says, for instance "4.2.1"; empty if it says none.

    Raises:
        OSError: it cannot be run.
        subprocess.TimeoutExpired: it hangs.
    """
    done = subprocess.run(
        [program, "--version"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        text=True,
        errors="replace",
    )
    found = re.search(r"^Version:\s*(\d+\.\d+\S*)", done.stdout, re.MULTILINE)
    return found[1] if found else ""


def check_criu(program: str | None, asked: str | None) -> Line:
    """Is there a CRIU, and is it new enough?

    Args:
        program: its path.
        asked: what the user said, if anything.
    """
    newer = "install CRIU 4.1 or newer, or name it with --criu PATH"
    if program is None:
        return Line(FAIL, "criu", f"{asked or 'criu'} is not an installed program: {newer}")
    try:
        version = criu_version(program)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Line(FAIL, "criu", f"{program} --version fails ({error}): {newer}")
    if not version:
        return Line(FAIL, "criu", f"{program} --version tells no version: {newer}")
    major, minor = version.split(".")[:2]
    if (int(major), int(re.match(r"\d+", minor)[0])) < OLDEST_CRIU:  # type: ignore[index]
        return Line(FAIL, "criu", f"{program} is version {version}, too old: {newer}")
    return Line(OK, "criu", f"{program}, version {version}")


# --- the built plugin ---


def check_parts(lib: Path) -> Line:
    """Is the plugin built and whole?"""
    missing = [part for part in PARTS if not any(lib.glob(part))]
    if len(missing) == len(PARTS):
        return Line(
            FAIL,
            "plugin",
            f"there is none in {lib}: make install puts it into {DEFAULT_LIB}; where make plugin"
            " built it, name the directory with --lib DIR",
        )
    if missing:
        return Line(FAIL, "plugin", f"{lib} lacks {', '.join(missing)}: {REBUILD}")
    if DEFAULT_LIB.exists() and lib.exists() and lib.samefile(DEFAULT_LIB):
        return Line(OK, "plugin", f"{lib} is complete; criu finds it by itself")
    return Line(OK, "plugin", f"{lib} is complete; give criu the option --libdir {lib}")


def linked_files(lib: Path) -> list[Path]:
    """Return the extension modules of Python's that embed.so is linked with."""
    data = (lib / "criu_detached" / "embed.so").read_bytes()
    return [Path(os.fsdecode(path)) for path in _LINKED.findall(data)]


def check_writers(lib: Path, program: str | None) -> Line:
    """Can someone other than root change the code that CRIU will run?"""
    subject = "writers"
    try:
        found = sorted(set(code_writers(lib)) | set(writers([Path(program)] if program else [])))
    except OSError as error:
        return Line(FAIL, subject, f"the plugin cannot be looked at: {error}")
    if not found:
        return Line(OK, subject, "only root can write the plugin and what it is linked with")
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return Line(
        FAIL,
        subject,
        f"{', '.join(found[:3])}{more}: criu runs this code as root; chown root it, chmod go-w"
        " it, or use make install",
    )


def code_writers(lib: Path) -> Iterator[str]:
    """Yield, in words, what others than root can write of a plugin and what it is linked with.

    Raises:
        OSError: something cannot be looked at.
    """
    if not lib.exists():
        return
    own = lib / "criu_detached"
    files = [lib / PARTS[0], own, *own.rglob("*")]
    yield from writers(path for path in files if os.path.lexists(path))
    if (own / "embed.so").exists():
        yield from writers(path for path in linked_files(lib) if path.exists())


def writers(paths: Iterable[Path]) -> Iterator[str]:
    """Yield, in words, each of these paths, and of their parents, that not only root can write.

    Symbolic links are followed one by one, as each of them may lead elsewhere tomorrow.

    Args:
        paths: absolute, they exist.

    Raises:
        OSError: something cannot be looked at.
    """
    seen: set[Path] = set()
    left = list(paths)
    while left:
        path = left.pop()
        if path in seen:
            continue
        seen.add(path)
        found = os.lstat(path)
        fault = _fault(found)
        if fault:
            yield f"{path} {fault}"
        if stat.S_ISLNK(found.st_mode):
            left.append(_link_target(path))
        if path != path.parent:
            left.append(path.parent)


def _link_target(path: Path) -> Path:
    """Follow one symbolic link; ".." in it is resolved as the kernel does it."""
    target = path.parent.resolve() / os.readlink(path)
    return target.parent.resolve() / target.name if ".." in target.parts else target


def _fault(found: os.stat_result) -> str:
    """Return why others than root can write it, or nothing; ACLs show in the group's bits."""
    if found.st_uid:
        return f"belongs to uid {found.st_uid}"
    if stat.S_ISLNK(found.st_mode):
        return ""
    # In a sticky directory such as /tmp no one can replace what belongs to root.
    if stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX:
        return ""
    mode = stat.S_IMODE(found.st_mode)
    if mode & stat.S_IWOTH:
        return f"is writable by everyone (mode {mode:o})"
    if mode & stat.S_IWGRP:
        return f"is writable by group {found.st_gid} (mode {mode:o})"
    return ""


# --- all together ---


def check_trial(lib: Path, program: str) -> Line:
    """Dump and restore a process that holds a file on a detached mount (see trial.py)."""
    subject = "trial"
    if os.geteuid():
        return Line(FAIL, subject, "not made, for only root can dump: run this command as root")
    try:
        report = run_trial(lib, program)
    except (OSError, ValueError) as error:
        return Line(FAIL, subject, f"it could not be made: {error}")
    fault = judge(report)
    if fault:
        return Line(FAIL, subject, fault)
    return Line(OK, subject, "criu dumped and restored a process with a file on a detached mount")


def run_trial(lib: Path, program: str) -> dict[str, Any]:
    """Run trial.py in a mount namespace of its own; return its report.

    Raises:
        OSError: a tool is absent.
        ValueError: the namespace could not be made, or the report is none.
    """
    command = ["unshare", "--mount", "--propagation", "private"]
    with tempfile.TemporaryDirectory(prefix="criu-detached-check-") as work:
        done = subprocess.run(
            [*command, sys.executable, "-I", str(TRIAL), program, str(lib.resolve()), work],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
        )
    if not done.stdout:
        raise ValueError(f"unshare: {_last_line(done.stderr) or 'no answer'}")
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def judge(report: dict[str, Any]) -> str:
    """Return what went wrong in a trial and what to do about it; nothing if it went well.

    Args:
        report: of trial.py.
    """
    if "setup" in report:
        return f"it could not be made: {report['setup']}"
    dump, restore = report["dump"], report.get("restore")
    if READY not in dump["log"]:
        return (
            f"this criu did not take the plugin in ({_reason(dump)}): use CRIU 4.1 to 4.3 as a"
            f" distribution has it, or {REBUILD}"
        )
    if dump["status"]:
        return f"criu took the plugin in, but the dump failed ({_reason(dump)}): {_advice(dump)}"
    if restore is None:
        return f"the plugin did not record the file on a detached mount: {REBUILD}"
    if restore["status"]:
        return f"the dump worked, but the restore failed ({_reason(restore)}): {_advice(restore)}"
    if not report["restored"]:
        return f"criu restored the process without its file: {REBUILD}"
    return ""


def _advice(run: dict[str, Any]) -> str:
    """Return what to do about a run that failed: it is the plugin's fault, or CRIU's."""
    reason = _reason(run)
    if "defect of the plugin" in reason:  # entry.py
        return "name the kernel and the CRIU above, too"
    own = "criu-detached" in reason or not reason.startswith("Error")
    return REBUILD if own else "see criu check, and whether the same fails without the plugin"


def _reason(run: dict[str, Any]) -> str:
    """Return the line of a criu run that tells most."""
    # CRIU raises its own limit first, and goes on where it may not.
    lines = [line for line in run["log"].splitlines() if "RLIMIT_NOFILE" not in line]
    for pattern in (
        r"^[\w.]+Error: .*",  # of Python, before the package can write to CRIU's log
        r"(?:Error|Warn) +criu-detached: .*",
        r"Error \(.*",
    ):
        for line in lines:
            found = re.search(pattern, line)
            if found:
                return found[0].strip()
    return f"exit status {run['status']}; {_last_line(run['log']) or 'it said nothing'}"


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""
