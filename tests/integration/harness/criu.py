"""Running criu, and saying what its log said."""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PLUGINS_VARIABLE = "CRIU_DETACHED_PLUGINS"
_CHECKOUT = Path(__file__).resolve().parents[3]


def default_plugins() -> Path:
    """The plugin directory under test."""
    return Path(os.environ.get(PLUGINS_VARIABLE, _CHECKOUT / "plugins"))


def has_plugin() -> bool:
    """Whether the plugin is built."""
    return any(default_plugins().glob("*.so"))


def version() -> str:
    """The version that criu tells of itself."""
    output = subprocess.run(["criu", "--version"], check=True, capture_output=True, text=True)
    found = re.search(r"Version: (\S+)", output.stdout)
    return found.group(1) if found else "of unknown version"


def has_plugin_option() -> bool:
    """Whether this CRIU gives options to plugins: from 4.3 on. False without a criu as well."""
    if not shutil.which("criu"):
        return False
    major, minor = (int(part) for part in version().split(".")[:2])
    return (major, minor) >= (4, 3)


def has_inet_sockets() -> bool:
    """Whether this CRIU can dump internet sockets on this kernel.

    From Linux 6.16 on they have no SO_PASSCRED. CRIU's dump_socket_opts asks for it nevertheless
    before 4.2 ("criu/sockets: Restrict SO_PASSCRED and SO_PASSSEC to supported families").
    """
    if not version().startswith(("4.0", "4.1")):
        return True
    with socket.socket(socket.AF_INET) as probe:
        try:
            probe.getsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED)
        except OSError as error:
            return error.errno != errno.EOPNOTSUPP
    return True


def has_network_namespaces() -> bool:
    """Whether this CRIU can dump a network namespace on this kernel.

    Linux 7.1 has no UDP-Lite any more. Before 4.2 CRIU does not take that for an answer.
    """
    if not version().startswith(("4.0", "4.1")):
        return True
    try:
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_UDPLITE).close()
    except OSError as error:
        return error.errno != errno.EPROTONOSUPPORT
    return True


@dataclass(frozen=True)
class CriuRun:
    """One finished criu process."""

    command: tuple[str, ...]
    status: int
    log: str
    seconds: float

    def errors(self) -> list[str]:
        """The lines that CRIU or the plugin logged as errors."""
        return [line for line in self.log.splitlines() if re.search(r"\bError\b", line)]

    def warnings(self) -> list[str]:
        """The lines logged as warnings."""
        return [line for line in self.log.splitlines() if re.search(r"\bWarn\b", line)]

    def report(self) -> str:
        """What a failed assertion shows: every error, and how the log ended."""
        tail = self.log.splitlines()[-15:]
        parts = [f"$ {' '.join(self.command)}", f"exit status {self.status}"]
        return "\n".join([*parts, "errors:", *self.errors(), "end of the log:", *tail])

    def succeeded(self) -> CriuRun:
        """Fail the test with the log unless criu worked."""
        assert self.status == 0, self.report()
        return self

    def failed(self, pattern: str) -> CriuRun:
        """Fail the test with the log unless criu failed with an error that says this."""
        assert self.status != 0, f"criu was expected to fail: {pattern}\n{self.report()}"
        found = any(re.search(pattern, line) for line in self.errors())
        assert found, f"no error says {pattern!r}\n{self.report()}"
        return self


def criu(
    verb: str,
    images: Path,
    arguments: Sequence[str] = (),
    *,
    plugins: Path | None = None,
    prefix: Sequence[str] = (),
    verbosity: int = 4,
) -> CriuRun:
    """Run criu to its end; a prefix such as strace goes before it."""
    images.mkdir(exist_ok=True)
    log = images / f"{verb}.log"
    log.unlink(missing_ok=True)
    command = [*prefix, "criu", verb, "--images-dir", str(images), "--log-file", str(log)]
    command += [f"-v{verbosity}", "--manage-cgroups=ignore", *arguments]
    if plugins is not None:
        command += ["--lib", str(plugins)]
    started = time.monotonic()
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        output = process.stdout.read().decode(errors="replace")
    seconds = time.monotonic() - started
    text = log.read_text(errors="replace") if log.exists() else ""
    return CriuRun(tuple(command), process.returncode, text + output, seconds)
