"""A process that alone holds a filesystem in memory: it moves through the images."""

from __future__ import annotations

from demo.stage import HOLDER, Stage
from demo.telling import detached_files, heading, note


def demonstrate() -> None:
    """Run it; raises AssertionError when a step goes wrong."""
    heading("A tmpfs that nobody but the process has any more")
    with Stage() as stage:
        stage.run("mkdir mnt images")
        stage.run("mount -t tmpfs demo mnt")
        stage.start(f"{HOLDER} files mnt")
        stage.run("umount --lazy mnt")
        note("200 files, one of them mapped and one deleted, live through this process alone")
        before = detached_files(stage.pid)
        assert before[3][0] == "/" and before[6][0].endswith("(deleted)"), before
        checksum = _checksum(stage)
        stage.dump()
        note("the tmpfs is gone with it; its files are in the images now:")
        note(
            stage.run("du -h --apparent-size images/criu-detached*").replace("\n", "\n    ").strip()
        )
        stage.restore(before)
        assert _checksum(stage) == checksum, "the files have changed"
        note("every byte is the same")


def _checksum(stage: Stage) -> str:
    """Of all files, the deleted one among them, through the fds of the process."""
    said = stage.run("cat /proc/$PID/fd/3/* /proc/$PID/fd/6 | sha256sum").strip()
    note(said)
    return said
