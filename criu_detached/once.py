# SPDX-License-Identifier: GPL-2.0-only
"""Attributes that are computed when they are first asked for, and kept."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from functools import cached_property as once
else:

    class once:  # noqa: N801  (a decorator, as property is)
        """A method that is read as an attribute: what it returns the first time is kept.

        functools has the like, and takes long to import.
        """

        def __init__(self, method):
            self._method = method

        def __set_name__(self, owner, name):
            self._name = name

        def __get__(self, instance, owner=None):
            # In the instance it is found before this descriptor is, as that cannot be set.
            value = instance.__dict__[self._name] = self._method(instance)
            return value


__all__ = ["once"]
