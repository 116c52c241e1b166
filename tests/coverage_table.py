"""The coverage table of README.md, made from what the integration tests showed.

A test names with the marker "covers" what it shows; the runs on this machine's kernel and in the
VM leave that in their result files. A cell says "restored" or "refused" only where a test of each
run has passed. Items of one group whose cells are alike share a line.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
# Names of the result files of each run; several VMs share the tests of theirs.
RUNS = ("native", "vm*")
PROPERTY = "covers"  # of a test in a result file: "ITEM COLUMN OUTCOME"
BEGIN = "<!-- coverage: made by make coverage -->"
END = "<!-- end of coverage -->"

COLUMNS = {
    "namespace": "bind source in the namespace",
    "host": "bind source on the host",
    "sole-held": "sole-held",
    "anonymous": "anonymous",
}
OUTCOMES = ("restored", "refused")


@dataclass(frozen=True)
class Group:
    """Items that belong together, and what stands before their names."""

    prefix: str
    items: dict[str, str]


GROUPS = (
    Group("fd: ", {"file": "regular file", "directory": "directory"}),
    Group(
        "fd: ",
        {
            "o_path": "`O_PATH`",
            "o_path_symlink": "`O_PATH` on a symlink",
            "o_nofollow": "`O_NOFOLLOW`",
            "o_append": "`O_APPEND`",
            "o_direct": "`O_DIRECT`",
            "o_tmpfile": "`O_TMPFILE`",
        },
    ),
    Group(
        "fd: ",
        {
            "fifo": "FIFO",
            "character_device": "character device (1)",
            "block_device": "block device (1)",
            "terminal": "terminal (3)",
            "unix_socket": "bound unix socket",
        },
    ),
    Group("", {"tree_fd": "fd of the tree itself (`open_tree`, `fsmount`)"}),
    Group(
        "",
        {
            "cwd": "cwd",
            "root": "root",
            "exe": "exe",
            "shared_mapping": "shared mapping",
            "private_mapping": "private mapping",
        },
    ),
    Group(
        "",
        {
            "deleted_file": "deleted file",
            "deleted_linked_file": "deleted file with another name",
            "deleted_directory": "deleted directory",
        },
    ),
    Group(
        "",
        {
            "flock": "`flock`",
            "posix_lock": "POSIX lock",
            "ofd_lock": "OFD lock",
            "lease": "lease",
            "fowner": "fowner and its signal",
            "scm_rights": "in flight (`SCM_RIGHTS`)",
        },
    ),
    Group("watch: ", {"inotify": "inotify (2)", "fanotify": "fanotify (2)"}),
)
ITEMS = {item for group in GROUPS for item in group.items}
# A mount with a bind source was attached once: no fd of it is the fd of a tree.
CANNOT_BE = {("tree_fd", "namespace"), ("tree_fd", "host")}


@dataclass(frozen=True)
class Claim:
    """What one test shows, if it passed."""

    item: str
    column: str
    outcome: str
    passed: bool


@dataclass(frozen=True)
class Run:
    """What one run of the integration tests showed, and on which kernel."""

    kernel: str
    claims: tuple[Claim, ...]

    def says(self, item: str, column: str) -> str:
        """The outcome of an item in a column, as this run has it."""
        claims = [c for c in self.claims if (c.item, c.column) == (item, column)]
        outcomes = {claim.outcome for claim in claims if claim.passed}
        if len(outcomes) > 1:
            return "in part"
        return outcomes.pop() if outcomes else "fails" if claims else "no test"


def read_run(directory: Path, pattern: str) -> Run:
    """Read the result files of a run."""
    paths = sorted(directory.glob(f"{pattern}.xml"))
    if not paths:
        raise FileNotFoundError(errno.ENOENT, "no results", str(directory / f"{pattern}.xml"))
    name = "unknown"
    claims: list[Claim] = []
    for path in paths:
        root = ElementTree.parse(path).getroot()
        kernel = root.find(".//testsuite/properties/property[@name='kernel']")
        name = name if kernel is None else kernel.get("value", "")
        claims += [claim for case in root.iter("testcase") for claim in _claims(case)]
    return Run(name, tuple(claims))


def _claims(case: ElementTree.Element) -> Iterator[Claim]:
    """What one test says of itself; a skipped one says nothing, an expected failure fails."""
    skipped = case.find("skipped")
    if skipped is not None and skipped.get("type") != "pytest.xfail":
        return
    passed = skipped is None and case.find("failure") is None and case.find("error") is None
    for element in case.iterfind(f"properties/property[@name='{PROPERTY}']"):
        item, column, outcome = element.get("value", "").split()
        if item not in ITEMS or column not in COLUMNS or outcome not in OUTCOMES:
            raise ValueError(f"{case.get('name')}: no such cell: {element.get('value')}")
        yield Claim(item, column, outcome, passed)


def cell(runs: Iterable[Run], item: str, column: str) -> str:
    """What all runs agree on, or what each of them says."""
    said = [(run.says(item, column), run.kernel) for run in runs]
    outcomes = {outcome for outcome, _ in said}
    if len(outcomes) > 1:
        return ", ".join(f"{outcome} on Linux {kernel}" for outcome, kernel in said)
    (outcome,) = outcomes
    return "n/a" if outcome == "no test" and (item, column) in CANNOT_BE else outcome


def table(runs: Iterable[Run]) -> str:
    """The whole table."""
    runs = list(runs)
    lines = [["held by the task", *COLUMNS.values()], ["---"] * (1 + len(COLUMNS))]
    for group in GROUPS:
        alike: dict[tuple[str, ...], list[str]] = {}
        for item, label in group.items.items():
            cells = tuple(cell(runs, item, column) for column in COLUMNS)
            alike.setdefault(cells, []).append(label)
        lines += [[group.prefix + ", ".join(labels), *cells] for cells, labels in alike.items()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def with_table(text: str, made: str) -> str:
    """The text with this table between its marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no {BEGIN!r} and {END!r} to put the table between")
    return f"{before}{begin}\n\n{made}\n{end}{after}"


def main(arguments: list[str] | None = None) -> int:
    """Print the table, put it into README.md, or see whether it is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--write", action="store_true", help="put the table into the README")
    what.add_argument("--check", action="store_true", help="fail if the README has another table")
    parser.add_argument("--results", type=Path, default=CHECKOUT / ".cache/results")
    parser.add_argument("--readme", type=Path, default=CHECKOUT / "README.md")
    given = parser.parse_args(arguments)
    try:
        made = table(read_run(given.results, pattern) for pattern in RUNS)
        old = given.readme.read_text()
        new = with_table(old, made)
    except FileNotFoundError as error:
        print(f"{error.filename} is missing: run make test-all", file=sys.stderr)
        return 1
    except (ValueError, ElementTree.ParseError) as error:
        print(f"no table can be made: {error}", file=sys.stderr)
        return 1
    if given.write:
        given.readme.write_text(new)
    elif not given.check:
        print(made, end="")
    elif old != new:
        lines = (old.splitlines(), new.splitlines())
        print(
            *difflib.unified_diff(*lines, "README.md", "what the tests showed", lineterm="", n=0),
            sep="\n",
        )
        print("README.md's table is not what the tests showed: run make coverage", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
