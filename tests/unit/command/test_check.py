"""The lines of ``criu-detached check``, all together."""

from __future__ import annotations

from pathlib import Path

import pytest

from criu_detached.command import check, cli, engines
from criu_detached.command.line import FAIL, OK, WARN, Line


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
