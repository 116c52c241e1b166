"""The README's coverage table says no more than what the tests of every kernel showed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from .. import coverage_table
from ..coverage_table import BEGIN, COLUMNS, END, GROUPS, ITEMS, Claim, Run, cell, main, table

KERNELS = {"native": "6.18", "vm": "7.2"}


def case(cell: str, result: str = "") -> str:
    """What pytest writes of a test that covers a cell."""
    properties = f'<properties><property name="covers" value="{cell}"/></properties>'
    return f'<testcase name="test">{properties}{result}</testcase>'


def write_results(directory: Path, **cases: Iterable[str]) -> None:
    """Result files with these tests in them."""
    for name, kernel in KERNELS.items():
        (directory / f"{name}.xml").write_text(
            "<testsuites><testsuite><properties>"
            f'<property name="kernel" value="{kernel}"/></properties>'
            f"{''.join(cases.get(name, ()))}</testsuite></testsuites>"
        )


def cell_of(directory: Path, item: str, column: str = "host") -> str:
    """One cell, from the result files."""
    runs = [coverage_table.read_run(directory, name) for name in KERNELS]
    return cell(runs, item, column)


PASSED = case("file host restored")
REFUSED = case("file host refused")
FAILED = case("file host restored", "<failure/>")
LOST = case("file host restored", "<error/>")
XFAILED = case("file host restored", '<skipped type="pytest.xfail"/>')
SKIPPED = case("file host restored", '<skipped type="pytest.skip"/>')


@pytest.mark.parametrize(
    ("native", "vm", "expected"),
    [
        ([PASSED], [PASSED], "restored"),
        ([REFUSED], [REFUSED], "refused"),
        ([], [], "no test"),
        ([PASSED], [], "restored on Linux 6.18, no test on Linux 7.2"),
        ([REFUSED], [PASSED], "refused on Linux 6.18, restored on Linux 7.2"),
        ([PASSED, REFUSED], [PASSED, REFUSED], "in part"),
        ([PASSED, FAILED], [PASSED], "restored"),
        ([FAILED, FAILED], [XFAILED], "fails"),
        ([LOST], [PASSED], "fails on Linux 6.18, restored on Linux 7.2"),
        ([SKIPPED], [case("file namespace restored")], "no test"),
        ([case("directory host restored")], [case("file sole-held restored")], "no test"),
    ],
)
def test_cell(tmp_path: Path, native: list[str], vm: list[str], expected: str) -> None:
    write_results(tmp_path, native=native, vm=vm)
    assert cell_of(tmp_path, "file") == expected


@pytest.mark.parametrize("bad", ["tile host restored", "file hots restored", "file host kept"])
def test_unknown_cell(tmp_path: Path, bad: str) -> None:
    write_results(tmp_path, vm=[case(bad)])
    with pytest.raises(ValueError, match=bad):
        cell_of(tmp_path, "file")


def test_a_tree_that_was_attached_has_no_fd_of_its_own(tmp_path: Path) -> None:
    write_results(tmp_path)
    assert cell_of(tmp_path, "tree_fd") == "n/a"
    assert cell_of(tmp_path, "tree_fd", "anonymous") == "no test"


def test_items_of_a_group_share_a_line_where_they_are_alike() -> None:
    claims = [Claim(item, column, "restored", True) for item in ITEMS for column in COLUMNS]
    alike = table([Run("6.18", tuple(claims))]).splitlines()
    assert len(alike) == 2 + len(GROUPS)
    assert alike[2] == "| fd: regular file, directory | restored | restored | restored | restored |"
    claims.remove(Claim("o_tmpfile", "host", "restored", True))
    claims.append(Claim("o_tmpfile", "host", "refused", True))
    lines = table([Run("6.18", tuple(claims))]).splitlines()
    assert set(lines) - set(alike) == {
        "| fd: `O_PATH`, `O_PATH` on a symlink, `O_NOFOLLOW`, `O_APPEND`, `O_DIRECT` "
        "| restored | restored | restored | restored |",
        "| fd: `O_TMPFILE` | restored | refused | restored | restored |",
    }


@pytest.fixture
def readme(tmp_path: Path) -> Path:
    """A README whose table is out of date."""
    path = tmp_path / "README.md"
    path.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    return path


def run(readme: Path, option: str) -> int:
    """The program, on the README and the result files beside it."""
    return main([option, f"--results={readme.parent}", f"--readme={readme}"])


def test_write_and_check(readme: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_results(readme.parent, native=[PASSED], vm=[PASSED])
    assert run(readme, "--check") == 1
    assert "-old" in capsys.readouterr().out
    assert run(readme, "--write") == 0
    text = readme.read_text()
    assert text.startswith(f"before\n{BEGIN}\n\n| held") and text.endswith(f"|\n\n{END}\nafter\n")
    assert run(readme, "--check") == 0
    write_results(readme.parent, native=[PASSED], vm=[REFUSED])
    assert run(readme, "--check") == 1
    assert readme.read_text() == text


@pytest.mark.parametrize("damage", ["no results", "half a result", "no marks"])
def test_no_table_can_be_made(readme: Path, damage: str) -> None:
    write_results(readme.parent)
    vm = readme.parent / "vm.xml"
    if damage == "no results":
        vm.unlink()
    elif damage == "half a result":
        vm.write_text(vm.read_text()[:-20])
    else:
        readme.write_text("no table\n")
    before = readme.read_text()
    assert run(readme, "--write") == 1
    assert readme.read_text() == before
