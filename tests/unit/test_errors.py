"""Names of the dumped system in messages: one line, whatever they hold."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criu_detached.errors import is_shortage, quote, reason


@pytest.mark.parametrize(
    ("name", "quoted"),
    [
        (b"", ""),
        (b"/plain/name", "/plain/name"),
        (b"b", "b"),
        (b"bb'b", "bb'b"),
        (b"a b", "a b"),
        (b"two\nlines", r"two\nlines"),
        (b"tab\there", r"tab\there"),
        (b"\x1b[31mred", r"\x1b[31mred"),
        (b"back\\slash", r"back\\slash"),
        ("grün".encode(), r"gr\xc3\xbcn"),
        (b"\xff\x00", r"\xff\x00"),
        (b"%s%n", "%s%n"),
    ],
)
def test_quote(name: bytes, quoted: str) -> None:
    assert quote(name) == quoted


@given(st.binary())
def test_quote_is_one_printable_line(name: bytes) -> None:
    quoted = quote(name)
    assert quoted.isascii()
    assert quoted.isprintable()
    assert len(quoted.splitlines()) <= 1


def test_long_name() -> None:
    """What is wrong with it comes after the name, and must be in the log as well."""
    quoted = quote(b"head" + b"\n" * 4000 + b"tail")
    assert len(quoted) < 1100
    assert quoted.startswith("head") and "..." in quoted and quoted.endswith("tail")


def test_reason() -> None:
    assert reason(errno.ENOENT) == "No such file or directory"


@pytest.mark.parametrize(
    ("error", "scarce"),
    [
        (MemoryError(), True),
        (OSError(errno.EMFILE, "x"), True),
        (OSError(errno.ENOMEM, "x"), True),
        (OSError(errno.EINVAL, "x"), False),
        (ValueError(), False),
    ],
)
def test_shortage(error: BaseException, scarce: bool) -> None:
    assert is_shortage(error) is scarce
