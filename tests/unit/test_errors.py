"""Names of the dumped system in messages: one line, whatever they hold."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criu_detached.errors import DetachedError, is_shortage, quote, reason, why


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
    ("error", "text"),
    [
        (OSError(errno.ENOENT, "ignored", "/a"), "No such file or directory"),
        (OSError("without a number"), "without a number"),
    ],
)
def test_why(error: OSError, text: str) -> None:
    assert why(error) == text


@pytest.mark.parametrize(
    ("cause", "number"),
    [
        (None, 0),
        (ValueError(), 0),
        (OSError("without a number"), 0),
        (OSError(errno.ENOENT, "x"), errno.ENOENT),
        (DetachedError("x", errno=errno.EXDEV), errno.EXDEV),
    ],
)
def test_errno_of_what_it_is_raised_from(cause: Exception | None, number: int) -> None:
    with pytest.raises(DetachedError, match="a line") as error:
        raise DetachedError("a line") from cause
    assert error.value.errno == number


def test_errno_that_was_given() -> None:
    with pytest.raises(DetachedError) as error:
        raise DetachedError("a line", errno=errno.EBUSY) from OSError(errno.ENOENT, "x")
    assert error.value.errno == errno.EBUSY


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
