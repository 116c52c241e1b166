# Typed stub of the cffi-embedded module that plugin/embed_build.py describes.
from collections.abc import Callable
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., int])

class _FFI:
    NULL: Any
    def def_extern(
        self, error: int = ..., onerror: Callable[..., None] = ...
    ) -> Callable[[_Function], _Function]: ...
    def string(self, cdata: Any) -> bytes: ...
    def from_buffer(self, cdecl: str, data: bytes) -> Any: ...

ffi: _FFI
lib: Any
