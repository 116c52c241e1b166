"""What check says of the container engines of a machine."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from criu_detached.command import built, engines, programs, runtimes
from criu_detached.command.line import OK, WARN, Line

SAID = "crun version 1.28\n+SYSTEMD +CRIU +YAJL\n"


@pytest.fixture
def ground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with runc, crun, podman on runc, and the plugin in tmp_path/lib."""
    monkeypatch.setattr(runtimes, "SETTINGS", tmp_path)
    monkeypatch.setattr(runtimes.settings_file, "__defaults__", (tmp_path,))
    monkeypatch.setattr(built, "DEFAULT_LIB", tmp_path / "default")
    monkeypatch.setattr(programs, "find_program", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(programs, "criu_version", lambda program: "4.2.1")
    monkeypatch.setattr(engines, "CONTAINERS", (tmp_path / "share", tmp_path))
    (tmp_path / "containers.conf").write_text('[engine]\nruntime = "/usr/bin/runc"\n')
    monkeypatch.setattr(runtimes, "said_of_itself", lambda name: SAID)
    monkeypatch.setattr(runtimes, "libcriu", lambda: SimpleNamespace(criu_set_config_file=print))
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / built.PARTS[0]).touch()
    return tmp_path


def test_check(ground: Path) -> None:
    (ground / "runc.conf").write_text(f"libdir {ground}/lib\n")
    (ground / "crun.conf").touch()
    runc, crun, podman, network = engines.check_engines(ground / "lib", "/usr/sbin/criu")
    assert runc.state == OK
    assert runc.text == (
        f"loads the plugin from {ground}/lib ({ground}/runc.conf says so)"
        " with /usr/sbin/criu, version 4.2.1"
    )
    assert crun.state == WARN
    assert f"does not load the plugin: it is not in {ground}/default (CRIU's default)" in crun.text
    assert podman.state == OK and podman.text.startswith("runs runc, which loads the plugin")
    assert network.state == OK and "iptables" in network.text


def test_check_default_conf(ground: Path) -> None:
    (ground / "default.conf").write_text(f"libdir {ground}/lib\n")
    assert [line.state for line in engines.check_engines(ground / "lib", None)] == [OK] * 4


@pytest.mark.parametrize(
    ("said", "library", "expected"),
    [(SAID, None, "install libcriu.so.2"), (SAID.replace("+CRIU", ""), object(), "without CRIU")],
)
def test_crun_cannot_checkpoint(
    ground: Path, monkeypatch: pytest.MonkeyPatch, said: str, library: object, expected: str
) -> None:
    monkeypatch.setattr(runtimes, "said_of_itself", lambda name: said)
    monkeypatch.setattr(runtimes, "libcriu", lambda: library)
    _, crun, *_ = engines.check_engines(ground / "lib", None)
    assert crun.state == WARN and expected in crun.text


def test_crun_with_an_older_library(ground: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What its settings say does not count."""
    (ground / "crun.conf").write_text(f"libdir {ground}/lib\n")
    _, crun, *_ = engines.check_engines(ground / "lib", None)
    assert crun.state == OK
    monkeypatch.setattr(runtimes, "libcriu", object)
    _, crun, *_ = engines.check_engines(ground / "lib", None)
    assert crun.state == WARN and "does not load the plugin" in crun.text


def test_network_lock(ground: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without iptables each runtime has to be told of another way."""
    found = ["runc", "crun"]
    monkeypatch.setattr(programs, "find_program", lambda name: name if name in found else None)

    def network() -> Line:
        return list(engines.check_engines(ground / "lib", None))[-1]

    assert network().state == WARN and f"into {ground}/default.conf" in network().text
    (ground / "crun.conf").write_text("network-lock nftables\n")
    assert network().state == WARN
    (ground / "default.conf").write_text("network-lock nftables\n")
    assert network().state == OK


def test_runtime_of_podman(ground: Path) -> None:
    assert engines.podman_runtime() == "runc"
    (ground / "containers.conf.d").mkdir()
    (ground / "containers.conf.d" / "10.conf").write_text('[engine]\nruntime = "kata"\n')
    assert engines.podman_runtime() == "kata"
    *_, podman, _ = engines.check_engines(ground / "lib", None)
    assert podman.state == WARN and podman.text.startswith("runs kata")
    (ground / "containers.conf.d" / "10.conf").write_text("[engine")
    (ground / "containers.conf").write_text("")
    assert engines.podman_runtime() == "crun"


def test_check_without_runtimes(ground: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "find_program", lambda name: None)
    assert not list(engines.check_engines(ground / "lib", None))
