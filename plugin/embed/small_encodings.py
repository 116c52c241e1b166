# SPDX-License-Identifier: GPL-2.0-only
"""The package ``encodings`` inside CRIU, without which Python does not start: UTF-8 alone.

The library's loads ``codecs`` and a table of 400 names, for a twelfth of the time that Python needs
to start. It is set to UTF-8 (start_python.c), and the package uses no other codec but those that
are written in C. freeze.py gives this its name.
"""

from __future__ import annotations

from _codecs import register, utf_8_decode, utf_8_encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class _Coder:
    """Encoder and decoder of a standard file; nothing is read, and C encodes what is written."""

    def __init__(self, errors: str = "strict") -> None:
        self.errors = errors

    def encode(self, text: str, _final: bool = False) -> bytes:
        return utf_8_encode(text, self.errors)[0]

    def reset(self) -> None:
        """There is no state."""

    def setstate(self, _state: Any) -> None:
        """There is no state."""


class _Codec(tuple[object, ...]):
    """What codecs.CodecInfo is."""

    name = "utf-8"
    _is_text_encoding = True
    incrementalencoder = incrementaldecoder = _Coder


def _search(name: str) -> _Codec | None:
    utf8 = name.replace("_", "-") in ("utf-8", "utf8")
    return _Codec((utf_8_encode, utf_8_decode, None, None)) if utf8 else None


register(_search)  # type: ignore[arg-type]
