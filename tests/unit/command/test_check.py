"""The lines of ``criu-detached check``, each for what is found."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from criu_detached.command import check, cli, engines
from criu_detached.command.check import FAIL, OK, WARN, Line

READY = f"(00.002) {check.READY}"


@pytest.fixture
def all_roots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file belongs to root, whoever runs the tests."""
    lstat = os.lstat

    def rooted(path: Any) -> os.stat_result:
        found = list(lstat(path))
        found[4] = 0
        return os.stat_result(found)

    monkeypatch.setattr(os, "lstat", rooted)


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    """A directory with everything that a built plugin has, and its path built in."""
    for part in check.PARTS:
        path = tmp_path / part.replace("*", "cpython-3")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return tmp_path


def link(plugin: Path, *paths: Path) -> None:
    """Link the plugin's Python part with libraries, as far as the check looks."""
    names = ["libc.so.6", *map(str, paths), "libpython3.so"]
    content = "\0".join(["\x7fELF/usr/not/a/name.so", *names, "/not.so.either", ""])
    (plugin / "criu_detached" / "embed.so").write_bytes(os.fsencode(content))


def fake_criu(directory: Path, script: str) -> str:
    """A program named criu."""
    path = directory / "criu"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


# --- the kernel ---


def fake_kernel(by_fd: bool, walk: Callable[[], Iterator[int]]) -> tuple[Any, ...]:
    def works(*_: object) -> int:
        return os.open("/", os.O_PATH)

    kernel = SimpleNamespace(
        O_PATH=os.O_PATH,
        RESOLVE_BENEATH=8,
        OPEN_TREE_CLOEXEC=os.O_CLOEXEC,
        openat2=works,
        open_tree=works,
        mount_setattr=lambda *_: None,
    )
    namespaces = SimpleNamespace(mount_ns_ids=walk)
    return kernel, namespaces, SimpleNamespace(has_by_fd=lambda: by_fd)


def no_walk() -> Iterator[int]:
    yield from (os.dup(fd) for fd in (-1,))  # fails with OSError


@pytest.mark.parametrize(
    ("by_fd", "walk", "state", "text"),
    [
        (True, no_walk, OK, "found by STATMOUNT_BY_FD"),
        (False, lambda: iter([1]), OK, "a walk over all mount namespaces"),
        (False, no_walk, WARN, "the mountinfo of every process"),
    ],
)
def test_kernel_paths(
    monkeypatch: pytest.MonkeyPatch,
    by_fd: bool,
    walk: Callable[[], Iterator[int]],
    state: str,
    text: str,
) -> None:
    monkeypatch.setattr(check, "_kernel", lambda: fake_kernel(by_fd, walk))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    line = check.check_kernel()
    assert line.state == state and text in line.text


def test_kernel_for_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "_kernel", lambda: fake_kernel(False, no_walk))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "run this as root" in check.check_kernel().text


def test_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = fake_kernel(True, no_walk)
    monkeypatch.setattr(check, "_kernel", lambda: modules)
    assert check.check_calls().state == OK

    def refuse(*_: object) -> int:
        raise OSError(38, "mount_setattr: Function not implemented")

    modules[0].mount_setattr = refuse
    line = check.check_calls()
    assert line.state == FAIL and "mount_setattr (Linux 5.12)" in line.text


def test_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> Any:
        raise ImportError("No module named 'criu_detached._kernel'")

    monkeypatch.setattr(check, "_kernel", absent)
    for line in (check.check_kernel(), check.check_calls()):
        assert line.state == FAIL and "make plugin" in line.text


# --- CRIU ---


def test_criu_absent(tmp_path: Path) -> None:
    absent = str(tmp_path / "criu")
    line = check.check_criu(check.find_criu(absent), absent)
    assert line.state == FAIL and absent in line.text and "install CRIU" in line.text


@pytest.mark.parametrize(
    ("version", "state"),
    [("3.19", FAIL), ("4.0", FAIL), ("4.1", OK), ("4.1.1", OK), ("4.3-rc1", OK), ("10.0", OK)],
)
def test_criu_version(tmp_path: Path, version: str, state: str) -> None:
    program = fake_criu(tmp_path, f"echo 'Version: {version}'; echo GitID: v{version}")
    line = check.check_criu(program, None)
    assert line.state == state and f"version {version}" in line.text


@pytest.mark.parametrize("script", ["exit 0", "echo none; exit 1", "echo Version: new"])
def test_criu_without_version(tmp_path: Path, script: str) -> None:
    line = check.check_criu(fake_criu(tmp_path, script), None)
    assert line.state == FAIL and "tells no version" in line.text


def test_criu_cannot_run(tmp_path: Path) -> None:
    program = fake_criu(tmp_path, "")
    Path(program).write_text("#!/no/such/interpreter\n")
    line = check.check_criu(program, None)
    assert line.state == FAIL and "--version fails" in line.text


# --- the built plugin ---


def test_complete(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check.check_parts(plugin) == Line(
        OK, "plugin", f"{plugin} is complete; give criu the option --libdir {plugin}"
    )
    monkeypatch.setattr(check, "DEFAULT_LIB", plugin)
    assert "criu finds it by itself" in check.check_parts(plugin).text


@pytest.mark.parametrize("part", check.PARTS)
def test_part_missing(plugin: Path, part: str) -> None:
    next(plugin.glob(part)).unlink()
    line = check.check_parts(plugin)
    assert line.state == FAIL and part in line.text and "make plugin" in line.text


def test_nothing_there(tmp_path: Path) -> None:
    line = check.check_parts(tmp_path / "absent")
    assert line.state == FAIL and "there is none" in line.text


def test_linked_files(plugin: Path) -> None:
    paths = [Path("/usr/lib/python3/a.so"), Path("/home/é/b.so")]
    link(plugin, *paths)
    assert check.linked_files(plugin) == paths


# --- who can write it ---


@pytest.mark.usefixtures("all_roots")
def test_only_root(plugin: Path) -> None:
    line = check.check_writers(plugin, None)
    assert line.state == OK, line


@pytest.mark.usefixtures("all_roots")
@pytest.mark.parametrize(
    "part", [".", "criu_detached.so", "criu_detached", "criu_detached/lib/criu_detached/entry.py"]
)
@pytest.mark.parametrize("bits", [0o002, 0o020])
def test_others_write(plugin: Path, part: str, bits: int) -> None:
    path = plugin / part
    path.chmod(path.stat().st_mode | bits)
    line = check.check_writers(plugin, None)
    who = "everyone" if bits == 0o002 else "group"
    assert line.state == FAIL and f"{path} is writable by {who}" in line.text


@pytest.mark.usefixtures("all_roots")
def test_others_write_linked(plugin: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    linked = tmp_path_factory.mktemp("linked") / "a.so"
    linked.touch()
    linked.chmod(0o666)
    link(plugin, linked)
    assert f"{linked} is writable" in check.check_writers(plugin, None).text


@pytest.mark.usefixtures("all_roots")
def test_others_write_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "open" / "real").mkdir(parents=True)
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "link").symlink_to("../open/real")
    found = list(check.writers([tmp_path / "a" / "link"]))
    assert found == [f"{tmp_path}/open is writable by everyone (mode 777)"]


@pytest.mark.usefixtures("all_roots")
def test_sticky_is_safe(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp").chmod(0o1777)
    assert not list(check.writers([tmp_path / "tmp"]))


def test_foreign_owner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lstat = os.lstat

    def owned(path: Any) -> os.stat_result:
        found = list(lstat(path))
        found[4] = 1234 if str(path).endswith("mine") else 0
        return os.stat_result(found)

    (tmp_path / "mine").touch()
    monkeypatch.setattr(os, "lstat", owned)
    assert list(check.writers([tmp_path / "mine"])) == [f"{tmp_path}/mine belongs to uid 1234"]


# --- the trial ---


def run(status: int = 0, *lines: str) -> dict[str, Any]:
    return {"status": status, "log": "\n".join(lines)}


GOOD = {"dump": run(0, READY), "recorded": True, "restore": run(), "restored": True}


def test_trial_good() -> None:
    assert check.judge(GOOD) == ""


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"setup": "mount: permission denied"}, "mount: permission denied"),
        ({"dump": run()}, "exit status 0; it said nothing"),
        (
            {"dump": run(0, "(00.1) Warn  criu-detached: this CRIU has no function fdstore_add")},
            "this CRIU has no function fdstore_add",
        ),
        (
            {"dump": run(1, "Error (criu/plugin.c:99): Failed to load", "Error (b): Dumping")},
            "Error (criu/plugin.c:99): Failed to load",
        ),
        (
            {
                "dump": run(
                    1,
                    "Error (criu/util.c:1): rlimit: Can't setup RLIMIT_NOFILE for self",
                    READY,
                    "Error (criu/x.c:2): Dumping FAILED.",
                )
            },
            "the dump failed (Error (criu/x.c:2)",
        ),
        (
            {"dump": run(1, READY, "ModuleNotFoundError: No module named 'criu_detached.dump'")},
            "No module named 'criu_detached.dump'",
        ),
        (
            {"dump": run(1, READY, "Error criu-detached: OSError: x; a defect of the plugin")},
            "name the kernel",
        ),
        ({"recorded": False, "restore": None}, "did not record"),
        (
            {"restore": run(1, "Error criu-detached: can't restore")},
            "restore failed (Error criu-detached: can't restore)",
        ),
        ({"restored": False}, "without its file"),
    ],
)
def test_trial_faults(change: dict[str, Any], text: str) -> None:
    assert text in check.judge({**GOOD, **change})


def test_trial_needs_root(monkeypatch: pytest.MonkeyPatch, plugin: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    line = check.check_trial(plugin, "criu")
    assert line.state == FAIL and "as root" in line.text


# --- all lines ---


def stub(monkeypatch: pytest.MonkeyPatch, **states: str) -> None:
    for name in ("kernel", "calls", "criu", "parts", "writers", "trial"):
        line = Line(states.get(name, OK), name, "text")
        monkeypatch.setattr(check, f"check_{name}", lambda *_, line=line: line)


def test_status(
    monkeypatch: pytest.MonkeyPatch, plugin: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["check", "--lib", str(plugin), "--criu", "sh"]
    monkeypatch.setattr(engines, "check_engines", lambda lib, criu: [])
    stub(monkeypatch, kernel=WARN)
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out.splitlines() == [
        "warn  kernel: text",
        "ok    calls: text",
        "ok    criu: text",
        "ok    parts: text",
        "ok    writers: text",
        "ok    trial: text",
    ]
    stub(monkeypatch, trial=FAIL)
    assert cli.main(arguments) == 1


@pytest.mark.parametrize("failed", ["criu", "parts", "writers"])
def test_no_trial_of_what_failed(
    monkeypatch: pytest.MonkeyPatch, plugin: Path, failed: str
) -> None:
    stub(monkeypatch, **{failed: FAIL})
    lines = list(check.check(plugin, "sh"))
    assert lines[-1].state == WARN and "not made" in lines[-1].text


def test_default_lib(monkeypatch: pytest.MonkeyPatch, plugin: Path, tmp_path: Path) -> None:
    own = plugin / "criu_detached" / "lib" / "criu_detached" / "command" / "check.py"
    monkeypatch.setattr(check, "__file__", str(own))
    assert check.default_lib() == plugin
    monkeypatch.setattr(check, "__file__", "/check.py")
    assert check.default_lib() == check.DEFAULT_LIB
