"""Attributes that are computed once."""

from __future__ import annotations

import pytest

from criu_detached.once import once


class Counting:
    """How often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    @once
    def number(self) -> int:
        """The first number."""
        self.asked += 1
        return self.asked

    @once
    def failing(self) -> int:
        """It fails, and so is asked again."""
        self.asked += 1
        raise OSError(self.asked)


def test_once_for_each_instance() -> None:
    one, other = Counting(), Counting()
    assert (one.number, one.number, one.asked, other.asked) == (1, 1, 1, 0)
    other.number = 7
    assert (other.number, other.asked) == (7, 0)


def test_failure_is_not_kept() -> None:
    one = Counting()
    for number in (1, 2):
        with pytest.raises(OSError, match=f"^{number}$"):
            _ = one.failing
