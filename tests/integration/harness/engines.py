"""Container engines: runc, crun, and podman with either of them beneath.

Nothing is fetched: a container's root is a few directories and symlinks, with the runner's own /usr
as a volume. So Python and the usual tools are there, and the root fits into any archive.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import kernel
from .criu import CriuRun

CRIU_PLUGINS = Path("/usr/lib/criu")  # where CRIU looks for plugins by itself
CRIU_SETTINGS = Path("/etc/criu")
GROUPS = Path("/proc/self/cgroup")  # of processes: a line for each version 1, one for version 2
IMAGE = "localhost/tools"  # what podman calls the root

# Those of podman, and what a program needs to unmount something.
CAPABILITIES = [
    f"CAP_{name}"
    for name in (
        *("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "NET_BIND_SERVICE", "SETFCAP"),
        *("SETGID", "SETPCAP", "SETUID", "SYS_CHROOT", "SYS_ADMIN"),
    )
]


@dataclass(frozen=True)
class Volume:
    """A bind mount of the host that the engine makes in the container."""

    source: Path
    target: str
    options: tuple[str, ...] = ()  # such as "ro"


@dataclass(frozen=True)
class Spec:
    """What a container is made from."""

    name: str
    command: Sequence[str]
    volumes: Sequence[Volume]
    read_only: bool = False
    id_map: tuple[int, int] | None = None  # a user namespace: first id outside, how many
    options: Sequence[str] = ()  # further ones of podman run


def make_root(root: Path) -> None:
    """A root filesystem whose programs are in the volume /usr."""
    for name in ("usr", "proc", "sys", "dev", "tmp", "run", "mnt", "etc", "var/tmp"):
        (root / name).mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")


class Engine(ABC):
    """One engine, with a directory of its own for what it keeps."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.directory = directory

    @abstractmethod
    def run(self, spec: Spec) -> None:
        """Start a container in the background."""

    @abstractmethod
    def pid(self, name: str) -> int:
        """The container's first process, as the runner sees it."""

    @abstractmethod
    def checkpoint(self, name: str, images: Path, *options: str) -> CriuRun:
        """Checkpoint a container; podman writes an archive if the images are named as one."""

    @abstractmethod
    def restore(self, name: str, images: Path, *options: str) -> CriuRun:
        """Restore a container from what checkpoint has written."""

    @abstractmethod
    def remove(self, *names: str) -> None:
        """End containers and forget them; no error if there is none. They can be restored."""

    @property
    @abstractmethod
    def prefix(self) -> list[str]:
        """The command that all others begin with."""


def call(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command of an engine to its end and return what it said, whatever its status.

    A container that it leaves behind must not hold its output open.
    """
    with tempfile.TemporaryFile("w+", dir="/tmp") as output:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        output.seek(0)
        return subprocess.CompletedProcess(command, done.returncode, output.read())


def must(*command: str) -> str:
    """Run a command of an engine that has to work; returns what it said."""
    done = call(*command)
    assert not done.returncode, f"{' '.join(command)[:2000]}: {done.stdout}"
    return done.stdout


def _criu_run(command: Sequence[str], log: Path) -> CriuRun:
    """Run an engine that runs CRIU, whose log will be there."""
    log.unlink(missing_ok=True)
    started = time.monotonic()
    done = call(*command)
    text = log.read_text(errors="replace") if log.exists() else ""
    seconds = time.monotonic() - started
    return CriuRun(tuple(command), done.returncode, text + done.stdout, seconds)


class Oci(Engine):
    """runc or crun by itself. What a container is restored from lies in its bundle."""

    @property
    def prefix(self) -> list[str]:
        return [self.name]  # crun's checkpoints name its own default for --root

    def bundle(self, name: str) -> Path:
        """The directory of a container's configuration and root."""
        return self.directory / name

    def run(self, spec: Spec) -> None:
        bundle = self.bundle(spec.name)
        if not bundle.exists():
            make_root(bundle / "rootfs")
        (bundle / "config.json").unlink(missing_ok=True)
        must(self.name, "spec", "--bundle", str(bundle))
        config = json.loads((bundle / "config.json").read_text())
        (bundle / "config.json").write_text(json.dumps(_configure(config, spec)))
        self._in_background("run", "--bundle", str(bundle), "--detach", spec.name).succeeded()

    def _in_background(self, verb: str, *options: str, log: Path | None = None) -> CriuRun:
        """The container gets the standard streams of the engine, and CRIU knows no file of ours."""
        command = [self.name, verb, *options]
        started = time.monotonic()
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        text = log.read_text(errors="replace") if log and log.exists() else ""
        seconds = time.monotonic() - started
        return CriuRun(tuple(command), done.returncode, text, seconds)

    def pid(self, name: str) -> int:
        return int(json.loads(must(self.name, "state", name))["pid"])

    def checkpoint(self, name: str, images: Path, *options: str) -> CriuRun:
        images.mkdir(exist_ok=True)
        places = ["--image-path", str(images), "--work-path", str(images)]
        command = [self.name, "checkpoint", *places, *options, name]
        return _criu_run(command, images / "dump.log")

    def restore(self, name: str, images: Path, *options: str) -> CriuRun:
        log = images / "restore.log"
        log.unlink(missing_ok=True)
        places = ["--image-path", str(images), "--work-path", str(images)]
        places += ["--bundle", str(self.bundle(name))]
        return self._in_background("restore", "--detach", *places, *options, name, log=log)

    def remove(self, *names: str) -> None:
        for name in names:
            call(self.name, "delete", "--force", name)


def _configure(config: dict[str, Any], spec: Spec) -> dict[str, Any]:
    """Make of an engine's default configuration the container that is wanted."""
    process, linux = config["process"], config["linux"]
    process.update(terminal=False, args=list(spec.command), cwd="/")
    process.pop("rlimits", None)  # to raise one takes CAP_SYS_RESOURCE
    process["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), CAPABILITIES)
    config["root"] = {"path": "rootfs", "readonly": spec.read_only}
    for volume in spec.volumes:
        options = ["rbind", "rprivate", *volume.options]
        mount = {"destination": volume.target, "type": "bind", "source": str(volume.source)}
        config["mounts"].append({**mount, "options": options})
    # Groups of processes are the machine's; other containers may be named like this one.
    linux["cgroupsPath"] = f"/criu-detached-{os.getpid()}-{spec.name}"
    if spec.id_map:
        outside, size = spec.id_map
        linux["namespaces"].append({"type": "user"})
        # CRIU mounts it again outside of the user namespace's cgroup namespace, which is refused.
        config["mounts"] = [mount for mount in config["mounts"] if mount["type"] != "cgroup"]
        mapping = [{"containerID": 0, "hostID": outside, "size": size}]
        linux["uidMappings"] = linux["gidMappings"] = mapping
    return config


@dataclass
class _Podman:
    """The commands of podman, all of whose containers have one storage."""

    runtime: str
    storage: Path

    def command(self, *words: str) -> list[str]:
        """A command line."""
        options = {
            "--root": str(self.storage),
            "--storage-driver": "overlay",
            "--runtime": self.runtime,
            "--cgroup-manager": "cgroupfs",
            "--events-backend": "none",
        }
        return ["podman", *(f"{name}={value}" for name, value in options.items()), *words]


class Podman(Engine):
    """podman, with runc or crun beneath."""

    def __init__(self, name: str, directory: Path) -> None:
        super().__init__(name, directory)
        self._podman = _Podman(name.removeprefix("podman-"), directory / "storage")
        self._ids: dict[str, str] = {}  # of the containers, by their names
        self.import_root()

    @property
    def prefix(self) -> list[str]:
        return [*self._podman.command(), "container"]

    def call(self, *words: str) -> str:
        """Run a podman command that has to work; returns what it said."""
        return must(*self._podman.command(*words))

    def import_root(self) -> None:
        """Give the storage the image that containers are made from."""
        with tempfile.TemporaryDirectory(dir=self.directory) as directory:
            make_root(Path(directory) / "root")
            archive = shutil.make_archive(f"{directory}/root", "tar", f"{directory}/root")
            self.call("import", archive, IMAGE)

    def save_image(self, archive: Path) -> None:
        """Write the image that containers are made from, for another machine or storage."""
        self.call("save", "--output", str(archive), IMAGE)

    def load_image(self, archive: Path) -> None:
        """Have the very image that containers of another machine or storage were made from."""
        self.call("load", "--input", str(archive))

    def renew(self) -> None:
        """Go on with a storage that has the image alone, as another machine has it."""
        self.call("rm", "--all", "--force", "--time=0")
        archive = self.directory / "image.tar"
        self.save_image(archive)
        self._podman.storage = Path(tempfile.mkdtemp(prefix="storage-", dir=self.directory))
        self.load_image(archive)
        archive.unlink()

    def run(self, spec: Spec) -> None:
        # Natively there may be no controller for the number of processes.
        words = ["run", "--detach", "--name", spec.name, "--pids-limit=0"]
        in_pod = any(option.startswith("--pod") for option in spec.options)
        words += [] if in_pod else ["--network=none"]
        words += ["--cap-add=SYS_ADMIN", f"--pidfile={self._pid_file(spec.name)}", *spec.options]
        words += ["--read-only"] if spec.read_only else []
        if spec.id_map:
            words += [f"--{kind}map=0:{spec.id_map[0]}:{spec.id_map[1]}" for kind in ("uid", "gid")]
        for volume in spec.volumes:
            options = ",".join(volume.options)
            words.append(f"--volume={volume.source}:{volume.target}" + (options and f":{options}"))
        self._ids[spec.name] = self.call(*words, IMAGE, *spec.command).split()[-1]

    def _pid_file(self, name: str) -> Path:
        """Read instead of asking podman, which takes seconds under emulation.

        On another machine the directory has to be there, too.
        """
        return Path(f"/run/{name}.pid")

    def pid(self, name: str) -> int:
        file = self._pid_file(name)
        if file.exists():
            return int(file.read_text())
        return int(self.call("inspect", "--format={{.State.Pid}}", name))  # an imported one

    def checkpoint(self, name: str, images: Path, *options: str) -> CriuRun:
        words = ["container", "checkpoint", "--keep"]
        if images.suffix:
            words += ["--export", str(images), "--compress=none"]
        words += options
        return _criu_run(self._podman.command(*words, name), self._userdata(name) / "dump.log")

    def restore(self, name: str, images: Path, *options: str) -> CriuRun:
        words = ["container", "restore", "--keep", *options]
        if not images.suffix:
            log = self._userdata(name) / "restore.log"
            return _criu_run(self._podman.command(*words, name), log)
        words += ["--import", str(images), "--name", name]
        run = _criu_run(self._podman.command(*words), self.directory / "not known yet")
        inspect = self._podman.command("container", "inspect", "--format={{.Id}}", name)
        self._ids[name] = run.log.split()[-1] if not run.status else call(*inspect).stdout.strip()
        log = self._userdata(name) / "restore.log"
        said = log.read_text(errors="replace") if log.exists() else ""
        return CriuRun(run.command, run.status, said + run.log, run.seconds)

    def _userdata(self, name: str) -> Path:
        """Where podman has the files of a container, CRIU's logs among them."""
        return self._podman.storage / "overlay-containers" / self._ids[name] / "userdata"

    def images_of(self, name: str) -> Path:
        """Where podman has the images of a container that it does not export."""
        return self._userdata(name) / "checkpoint"

    def volume(self, name: str) -> Path:
        """Where podman has the files of a named volume."""
        return self._podman.storage / "volumes" / name / "_data"

    def remove(self, *names: str) -> None:
        # At once: each podman takes a second to start under emulation.
        call(*self._podman.command("rm", "--force", "--time=0", "--ignore", *names))
        for name in names:
            self._pid_file(name).unlink(missing_ok=True)


ENGINES: dict[str, type[Engine]] = {
    "runc": Oci,
    "crun": Oci,
    "podman-runc": Podman,
    "podman-crun": Podman,
}


@dataclass
class Engines:
    """The engines of a test session, made when they are first asked for."""

    directory: Path
    _made: dict[str, Engine] = field(default_factory=dict)

    def get(self, name: str) -> Engine:
        """The engine of that name."""
        if name not in self._made:
            directory = self.directory / name
            directory.mkdir()
            self._made[name] = ENGINES[name](name, directory)
        return self._made[name]


@contextmanager
def prepared_engines() -> Iterator[Engines]:
    """Settings of CRIU that containers need on any machine, for as long as tests run."""
    directory = Path(tempfile.mkdtemp(prefix="criu-detached-engines-", dir="/tmp"))
    directory.chmod(0o755)  # for user namespaces
    kernel.mount("settings", CRIU_SETTINGS, "tmpfs", 0, "mode=755")
    # Needs no iptables. In what a runtime hands to CRIU 4.1 by itself, the line makes that crash.
    (CRIU_SETTINGS / "default.conf").write_text("network-lock nftables\n")
    for name in ("runc", "crun"):
        write_settings(name)
    try:
        yield Engines(directory)
    finally:
        kernel.umount2(CRIU_SETTINGS, kernel.MNT_DETACH)
        _unmount_below(directory)
        shutil.rmtree(directory)


def write_settings(runtime: str, *lines: str) -> None:
    """What a runtime tells CRIU: leaves the machine's other groups of processes alone."""
    # Where there are groups of version 1, as on some machines, CRIU would set those too.
    text = "\n".join(["manage-cgroups=ignore", *lines, ""])
    (CRIU_SETTINGS / f"{runtime}.conf").write_text(text)


@contextmanager
def plugin_settings(*lines: str) -> Iterator[None]:
    """The plugin's settings for the whole machine."""
    path = CRIU_SETTINGS / "criu-detached.conf"
    path.write_text("".join(f"{line}\n" for line in lines))
    try:
        yield
    finally:
        path.unlink()


def has_settings(engine: str) -> bool:
    """Whether CRIU gets settings from the engine: not from a crun before 1.26."""
    if not engine.endswith("crun"):
        return True
    found = re.search(r"version (\d+)\.(\d+)", must("crun", "--version"))
    return found is None or (int(found[1]), int(found[2])) >= (1, 26)


def sets_groups(engine: str) -> bool:
    """Whether CRIU would set groups of version 1, for nothing tells it not to."""
    has_groups = re.search(r"^[^0]", GROUPS.read_text(), re.MULTILINE) is not None
    return has_groups and not has_settings(engine)


def _unmount_below(directory: Path) -> None:
    """Unmount what engines have left in their storage."""
    text = Path("/proc/self/mountinfo").read_text()
    points = [line.split(" ")[4] for line in text.splitlines()]
    for point in reversed([point for point in points if point.startswith(f"{directory}/")]):
        kernel.umount2(Path(point), kernel.MNT_DETACH)


@contextmanager
def plugins_in_place(plugins: Path | None) -> Iterator[None]:
    """Plugins where CRIU finds them by itself, or none there."""
    if plugins is None:
        yield
        return
    kernel.bind(plugins, CRIU_PLUGINS)
    try:
        yield
    finally:
        kernel.umount2(CRIU_PLUGINS, kernel.MNT_DETACH)
