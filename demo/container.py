"""A container of podman's, moved through an archive while its volume is unmounted inside."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from demo.stage import Stage, wait_until
from demo.telling import detached_files, heading, note, table
from tests.integration.harness import criu, kernel
from tests.integration.harness.engines import CRIU_PLUGINS, CRIU_SETTINGS, sets_groups
from tests.integration.harness.scenario import reap


def demonstrate() -> None:
    """Run it; raises AssertionError when a step goes wrong."""
    heading("A container of podman's that unmounts its volume")
    if not shutil.which("podman"):
        note("left out: podman is not installed here")
        return
    # A crun that hands no settings to CRIU would have it set groups of processes.
    runtime = "runc" if sets_groups("podman-crun") else "crun"
    with Stage() as stage, _settings(stage, runtime):
        podman = f"podman --root=$PWD/storage --storage-driver=overlay --runtime={runtime}"
        podman += " --cgroup-manager=cgroupfs --events-backend=none"
        stage.define(f'podman() {{ command {podman} "$@"; }}')
        stage.run("mkdir -p volume root/{usr,proc,sys,dev,tmp,run,mnt,etc,data}")
        stage.run("for name in bin sbin lib lib64; do ln -s usr/$name root/$name; done")
        stage.run("tar -C root -c . | podman import - localhost/tools")
        try:
            _move(stage)
        finally:
            stage.run("podman rm --all --force --time=0")


def _move(stage: Stage) -> None:
    """Run, checkpoint and restore the container."""
    script = (
        "exec 3>>/data/log </dev/null; umount -l /data; while sleep 0.05; do echo a line >&3; done"
    )
    stage.run(
        "podman run --detach --name db --network=none --pids-limit=0 --cap-add=SYS_ADMIN"
        " --pidfile $PWD/db.pid --volume /usr:/usr:ro --volume $PWD/volume:/data"
        f" localhost/tools sh -c '{script}'"
    )
    log = stage.path / "volume" / "log"
    wait_until(log.exists, "the first line of the log")
    stage.follow(int((stage.path / "db.pid").read_text()))
    wait_until(lambda: bool(detached_files(stage.pid)), "the end of the volume inside")
    before = detached_files(stage.pid)
    note("no mount in the container shows the log that it writes to")
    note("without the plugin:")
    stage.fail("podman container checkpoint --export db.tar.gz db", "Can't lookup mount=")
    stage.show(f"mount --bind $PLUGINS {CRIU_PLUGINS}    # make install puts it there for good")
    kernel.bind(criu.default_plugins(), CRIU_PLUGINS)
    try:
        stage.run("podman container checkpoint --export db.tar.gz db")
        reap([stage.pid])
        lines = log.read_text().count("\n")
        note(f"the container is gone; {lines} lines are in volume/log")
        stage.run("podman container restore --import db.tar.gz --name db2")
        stage.start("podman inspect --format '{{.State.Pid}}' db2")
        table(before, detached_files(stage.pid))
        wait_until(lambda: log.read_text().count("\n") > lines, "another line of the log")
        note("it goes on writing: there are more lines in volume/log")
    finally:
        kernel.umount2(CRIU_PLUGINS, kernel.MNT_DETACH)


@contextmanager
def _settings(stage: Stage, runtime: str) -> Iterator[None]:
    """What CRIU is told in containers, here alone."""
    stage.run(f"mount -t tmpfs -o mode=755 demo {CRIU_SETTINGS}")
    try:
        stage.run(f"echo network-lock nftables >{CRIU_SETTINGS}/default.conf")
        stage.run(f"echo manage-cgroups=ignore >{CRIU_SETTINGS}/{runtime}.conf")
        yield
    finally:
        kernel.umount2(CRIU_SETTINGS, kernel.MNT_DETACH)
