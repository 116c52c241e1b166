"""A container with files on volumes that its program unmounts lazily, as a scenario is."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from . import kernel, look
from .criu import CriuRun, default_plugins
from .engines import Engine, Spec, Volume, plugins_in_place
from .placement import INSIDE, Bind, Ground, Placement
from .program import Program
from .scenario import (
    NOBODY,
    Held,
    difference,
    reap,
    told_of_answers,
    wait_until,
    work_directory,
)

LEAVES_RUNNING = {"--leave-running", "--pre-dump", "--pre-checkpoint"}  # options of a checkpoint
ID_MAP = (200000, 65536)  # of a user namespace: first id outside, how many


class Container(Held):
    """A container of an engine; its first process runs the program, or what was put before it."""

    def __init__(
        self,
        engine: Engine,
        placement: Placement = Placement.NAMESPACE,
        binds: Sequence[Bind] = (Bind(),),
        *,
        attached: bool = False,
        read_only: bool = False,
        userns: bool = False,
        options: Sequence[str] = (),
        work: Path | None = None,
    ) -> None:
        assert placement.own_namespace
        self.engine = engine
        self.work = work_directory("container-", work)
        self.work.chmod(0o755)
        self.images = self.work / "images"
        self.name = self.work.name.replace("_", "-")
        self.ground = Ground(self.work, placement, binds, attached)
        self.usr = Path("/usr")  # what it has its programs from
        self._read_only = read_only
        self._id_map = ID_MAP if userns else None
        self._options = options
        self.names = [self.name]  # all that it had
        self._stack = ExitStack()
        self._stack.enter_context(told_of_answers(self.ground))
        if userns:
            self.usr = self._stack.enter_context(_alone(self.usr))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._stack.close()
        self.ground.clear()
        shutil.rmtree(self.work)

    def start(self, program: Program, **arguments: Any) -> Self:
        """Start a container whose agent runs the program, and wait until it holds its files."""
        self.ground.make_source()
        spec = Spec(
            self.name,
            self._agent(program, arguments, runner=NOBODY),
            list(self._volumes()),
            self._read_only,
            self._id_map,
            self._options,
        )
        if self._id_map:
            _give_away(self.work, self._id_map[0])
        self.engine.run(spec)
        self.pid = self.engine.pid(self.name)
        self._answer()  # by now the agent is there
        self._find()
        return self

    def _volumes(self) -> Iterator[Volume]:
        """Programs, the base, the source if it is to be seen inside, and what gets unmounted."""
        yield Volume(self.usr, "/usr", ("ro",))
        yield Volume(self.ground.base, str(INSIDE))
        if self.ground.placement is Placement.NAMESPACE:
            (self.ground.base / "source").mkdir()
            yield Volume(self.ground.source, str(INSIDE / "source"))
        for bind, point in zip(self.ground.binds, self.ground.points(), strict=True):
            outside = self.ground.base / Path(point).name
            outside.touch() if bind.shape.is_file else outside.mkdir()
            options = ("ro",) if bind.flags & kernel.MS_RDONLY else ()
            yield Volume(self.ground.source / bind.shape.bound, point, options)

    def _find(self) -> None:
        """The agent is the container's first process, or the child of an init."""
        init = self.engine.pid(self.name)
        self.pid = next(pid for pid in look.tree(init) if look.is_agent(pid))

    def checkpoint(
        self, *options: str, plugin: bool | None = None, plugins: Path | None = None
    ) -> CriuRun:
        """Checkpoint; when it worked, the processes are gone unless they were to be left."""
        with self._plugins(plugin, plugins):
            run = self.engine.checkpoint(self.name, self.images, *options)
        if run.status == 0 and not LEAVES_RUNNING & set(options):
            self._wait_for_end()
        return run

    def restore(
        self,
        *options: str,
        name: str | None = None,
        plugin: bool | None = None,
        plugins: Path | None = None,
    ) -> CriuRun:
        """Restore, from an archive under another name if one is given."""
        if name:
            self.names.append(name)
            self.name = name
        with self._plugins(plugin, plugins):
            run = self.engine.restore(self.name, self.images, *options)
        if run.status == 0:
            self._find()
        return run

    def cycle(self, *options: str, plugin: bool | None = None) -> Self:
        """Checkpoint and restore; what is seen of the container must be as before."""
        before = self.seen()
        self.checkpoint(*options, plugin=plugin).succeeded()
        self.restore(*options, plugin=plugin).succeeded()
        after = self.seen()
        assert after == before, difference(before, after)
        return self

    def assert_gone(self) -> None:
        """Nothing is left of a restore that failed; the runner reaps what the engine leaves."""
        wait_until(_have_no_child, "the end of what a failed restore left")

    def seen(self) -> look.Seen:
        """What must be the same after a restore."""
        return look.seen_inside(self.engine.pid(self.name))

    def kill(self) -> None:
        """End the container, under all the names that it had."""
        self.engine.remove(*self.names)
        self._wait_for_end()
        self.pid = 0

    def _wait_for_end(self) -> None:
        """Until the agent is gone; the engine or this process reaps it."""
        if self.pid and Path(f"/proc/{self.pid}").exists():
            reap([self.pid])

    @contextmanager
    def _plugins(self, plugin: bool | None, plugins: Path | None) -> Iterator[None]:
        """The plugin where CRIU looks for it: by default, unless nothing gets detached."""
        wanted = not self.ground.attached if plugin is None else plugin
        with plugins_in_place((plugins or default_plugins()) if wanted else None):
            yield


def _have_no_child() -> bool:
    """Whether all children of this process, orphans among them, have ended; they are reaped."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
        return False
    return True


@contextmanager
def _alone(directory: Path) -> Iterator[Path]:
    """Another mount of a directory, without those beneath it.

    In a user namespace these would be locked, and keep CRIU from binding the directory again.
    """
    point = work_directory("alone-")
    kernel.bind(directory, point)
    yield point
    kernel.umount2(point, kernel.MNT_DETACH)
    point.rmdir()


def _give_away(work: Path, owner: int) -> None:
    """Let the root of a user namespace own the files that it sees."""
    for path in [work, *work.rglob("*")]:
        os.chown(path, owner, owner, follow_symlinks=False)
