# SPDX-License-Identifier: GPL-2.0-only
"""The functions that the shim calls (plugin/embed/host.h). Imported once, inside CRIU.

An error becomes a log line here, and nowhere else.

Those of a restore but the first are called in the tasks, in a copy of the interpreter that was not
told of the fork. plugin/embed/start_python.c says why it works all the same. For that nothing here
may start a thread, register what is to be done after a fork, or keep a process id.
"""

from __future__ import annotations

import errno
import sys

from _criu_detached_embed import ffi, lib

from criu_detached.criu import log
from criu_detached.criu.host import Host
from criu_detached.errors import DetachedError, is_shortage, quote
from criu_detached.kernel import FileStat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any

    from criu_detached.dump.dump import Dump
    from criu_detached.restore.restore import Restore

# enum dump_answer
_LEAVE, _EXTERNAL, _REFUSE = 0, 1, -1

_host = Host(ffi, lib)
log.set_writer(_host.criu.log)
_dump: Dump | None = None
_restore: Restore | None = None


def _unexpected(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Log an exception that nothing expected. No module and no source file is read for it."""
    if is_shortage(error):
        what = str(error) or kind.__name__
        log.error(f"{what}: criu needs more of it, see its limits (ulimit -a)")
        return
    log.error(f"{kind.__name__}: {error}; this is a defect of the plugin, please report it")
    while trace:
        code = trace.tb_frame.f_code
        log.error(f"  {code.co_filename}:{trace.tb_lineno} in {code.co_name}")
        trace = trace.tb_next


def _the_dump() -> Dump:
    global _dump
    if _dump is None:
        from criu_detached.dump.dump import Dump  # a restore does without

        _dump = Dump(_host)
    return _dump


def _refuse(facts: Any, link: bytes, error: DetachedError) -> int:
    log.error(
        f"can't dump {quote(link)} (mount {facts.mnt_id}, inode {facts.ino}) on a detached mount:"
        f" {error}"
    )
    return _REFUSE


@ffi.def_extern(error=_REFUSE, onerror=_unexpected)
def dump_link(fd: int, link: Any, facts: Any) -> int:
    """Return _LEAVE, _EXTERNAL or _REFUSE for a file whose link CRIU has read."""
    text: bytes = ffi.string(link)
    try:
        return _EXTERNAL if _the_dump().link_read(fd, text, FileStat(facts)) else _LEAVE
    except DetachedError as error:
        return _refuse(facts, text, error)


@ffi.def_extern(error=_REFUSE, onerror=_unexpected)
def dump_ext_file(fd: int, file_id: int, facts: Any) -> int:
    """Return 0 when a device was recorded, -ENOTSUP when it is not on a detached mount."""
    try:
        recorded = _the_dump().ext_file(fd, file_id, FileStat(facts))
        return 0 if recorded else -errno.ENOTSUP
    except DetachedError as error:
        return _refuse(facts, b"device", error)


@ffi.def_extern(error=_REFUSE, onerror=_unexpected)
def dump_bound_socket(fd: int, name: Any, facts: Any, answer: Any) -> int:
    """Return the id of a bound unix socket's record, 0 for a file that is left to CRIU, or -1."""
    text: bytes = ffi.string(name)
    try:
        found = _the_dump().socket_bound(fd, text, FileStat(facts))
    except DetachedError as error:
        return _refuse(facts, text, error)
    if found is None:
        return _LEAVE
    answer.stand_in, answer.place, answer.deleted = found.stand_in, found.place, found.deleted
    return found.number


@ffi.def_extern(error=_REFUSE, onerror=_unexpected)
def dump_peer(name: Any) -> int:
    """Return -ENOTSUP for a socket outside of the dump that a restore will find, else _REFUSE."""
    text: bytes = ffi.string(name)
    try:
        _the_dump().check_peer(text)
        return -errno.ENOTSUP
    except DetachedError as error:
        log.error(f"can't dump a unix socket that is connected to {quote(text)}: {error}")
        return _REFUSE


@ffi.def_extern(error=_REFUSE, onerror=_unexpected)
def dump_thread_file(fd: int, link: Any, facts: Any, whose: Any) -> int:
    """Return _REFUSE when what a thread has for itself is on a detached mount, else _LEAVE."""
    if not _the_dump().is_detached(fd, FileStat(facts)):
        return _LEAVE
    log.error(
        f"can't dump {quote(ffi.string(whose))}, {quote(ffi.string(link))} (mount {facts.mnt_id})"
        " on a detached mount: CRIU keeps the files and places of a process's main thread alone;"
        " end that thread, or have it let go"
    )
    return _REFUSE


@ffi.def_extern(error=-1, onerror=_unexpected)
def dump_watches() -> int:
    """Give names to watched files that CRIU finds on no mount; return 0 when all have one."""
    try:
        _the_dump().find_watched()
        return 0
    except DetachedError as error:
        log.error(f"can't dump a watch (inotify or fanotify): {error}")
        return -1


@ffi.def_extern(error=-1, onerror=_unexpected)
def dump_deleted_watched(fd: int) -> int:
    """Return 1 for a deleted file that is watched, and is one of a detached mount; else 0."""
    return int(_the_dump().is_watched_ghost(fd))


@ffi.def_extern(error=-1, onerror=_unexpected)
def pre_dump_watches() -> int:
    """Let a pre-dump pass by watched files that CRIU finds on no mount; return 0."""
    from criu_detached.dump.kinds.watched import pass_by_watches

    pass_by_watches(_host.criu)
    return 0


@ffi.def_extern(error=-1, onerror=_unexpected)
def dump_flush() -> int:
    """Return 0 when every record is in the image directory."""
    try:
        if _dump is not None:
            _dump.flush()
        return 0
    except DetachedError as error:
        log.error(str(error))
        return -1


@ffi.def_extern(error=-1, onerror=_unexpected)
def restore_init() -> int:
    """Return 0 when all is ready for the tasks."""
    global _restore
    from criu_detached.restore.restore import Restore  # a dump does without

    try:
        _restore = Restore(_host)
    except DetachedError as error:
        log.error(f"can't restore the detached mounts: {error}")
        return -1
    _close_imports()
    return 0


@ffi.def_extern(error=-1, onerror=_unexpected)
def restore_open(name: Any, flags: int) -> int:
    """Return the fd of a recorded file, in a task; -EAGAIN when a lease is in the way."""
    assert _restore is not None
    try:
        return _restore.open(ffi.string(name), flags)
    except BlockingIOError:
        return -errno.EAGAIN
    except DetachedError as error:
        log.error(str(error))
        return -1


@ffi.def_extern(error=-1, onerror=_unexpected)
def restore_ext_file(file_id: int) -> int:
    """Return the fd of a recorded device, in a task; -ENOTSUP when it is another plugin's."""
    assert _restore is not None
    try:
        fd = _restore.ext_file(file_id)
    except DetachedError as error:
        log.error(str(error))
        return -1
    return -errno.ENOTSUP if fd is None else fd


@ffi.def_extern(error=-1, onerror=_unexpected)
def enter_socket_dir(number: int) -> int:
    """Return 0 when this task is where the name of a recorded socket leads to its mount."""
    assert _restore is not None
    try:
        _restore.enter_socket_dir(number)
        return 0
    except DetachedError as error:
        log.error(str(error))
        return -1


@ffi.def_extern(error=-1, onerror=_unexpected)
def restore_bound(number: int) -> int:
    """Give a socket that was bound in this task, and its directory, what they had; return 0."""
    assert _restore is not None
    _restore.socket_bound(number)
    return 0


@ffi.def_extern(onerror=_unexpected)
def reset_package() -> None:
    """Drop the dump or restore of before: another one of this process begins."""
    global _dump, _restore
    _dump = _restore = None
    for place, entries in _IMPORTS:
        place[:] = entries  # as before a restore closed them


# What an import goes through, as it was at first.
_IMPORTS: list[tuple[list[Any], list[Any]]] = [
    (place, list(place)) for place in (sys.meta_path, sys.path_hooks, sys.path)
]


def _close_imports() -> None:
    """From here on nothing can be imported: a task's filesystem may be a container's."""
    for place, _ in _IMPORTS:
        place.clear()
    sys.path_importer_cache.clear()
