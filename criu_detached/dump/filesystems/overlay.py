# SPDX-License-Identifier: GPL-2.0-only
"""Overlays: a new superblock over the same layers, once the old one is gone.

Only the old one may write to its upper directory. So the trial mount of a dump is one of the
same layers without an upper directory: it shows the same files and changes nothing.
"""

from __future__ import annotations

import errno
import os
import stat

from criu_detached import kernel, paths
from criu_detached.dump.filesystems.twins import (
    Twins,
    attach_for_trial,
    climb,
    is_directory,
    names_in,
    superblock_flags,
)
from criu_detached.dump.holders import held_files
from criu_detached.dump.roots import SEARCH_LIMIT
from criu_detached.dump.sources import Source
from criu_detached.errors import DetachedError, quote, reason
from criu_detached.records import Filesystem, Layer
from criu_detached.superblock import superblock_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from criu_detached.kernel import FileFacts, StatMount

OVERLAYFS_MAGIC = 0x794C7630  # linux/magic.h

# Options that name a directory (fs/overlayfs/params.c). With one for each layer no separator
# is needed.
UPPER, WORK, LOWER, DATA = b"upperdir", b"workdir", b"lowerdir+", b"datadir+"
_MANY_LOWER = b"lowerdir"
# Options that need an upper directory, or would not let a layer be used twice.
_NOT_FOR_TRIAL = {b"index", b"nfs_export", b"fsync"}
# As mount(8) takes it, and as newer kernels show it.
_VOLATILE = {b"volatile", b"fsync=volatile"}


class Layers:
    """The directories of an overlay, opened in a private mount namespace."""

    def __init__(self, layers: list[tuple[bytes, bytes]]) -> None:
        """Open them.

        Args:
            layers: option and path of each.

        Raises:
            DetachedError: one of them cannot be reached.
        """
        self.fds: list[tuple[bytes, int]] = []
        self.paths = [path for _, path in layers]
        try:
            for option, path in layers:
                self.fds.append((option, _open_layer(option, path)))
        except DetachedError:
            self.close()
            raise

    def close(self) -> None:
        """Let go of them."""
        for _, fd in self.fds:
            os.close(fd)
        self.fds.clear()

    def find(self, option: bytes) -> int:
        """The fd of the directory that an option names; -1: there is none."""
        return next((fd for name, fd in self.fds if name == option), -1)

    def records(self) -> list[Layer]:
        """What tells whether they are the same at restore."""
        return [
            Layer(
                option=option,
                path=path,
                superblock=superblock_of(fd, b""),
                ino=kernel.fstat(fd).ino,
            )
            for path, (option, fd) in zip(self.paths, self.fds, strict=True)
        ]


def _open_layer(option: bytes, path: bytes) -> int:
    what = f"the directory {quote(path)} ({quote(option)}) of the overlay"
    if not path.startswith(b"/"):
        raise DetachedError(f"{what} is no absolute path: where it starts is not known")
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise DetachedError(
            f"{what} cannot be opened where criu runs: {reason(error.errno or 0)}"
        ) from error


def overlaid(fd: int, mnt_id: int, known: StatMount | None, number: int) -> Iterator[Source]:
    """Yield, opened, a mount that shows what an overlay shows, for a trial.

    Args:
        fd: a file on the overlay.
        mnt_id: of its mount.
        known: what statmount says of it, where the kernel can.
        number: for the record.

    Raises:
        DetachedError: the overlay cannot be mounted again, or would not be the same.
    """
    if known is None:
        raise DetachedError(
            "the kernel does not tell of which layers this overlay is; Linux 7.0 or newer does."
            " Mount it somewhere before the dump"
        )
    named, options = take_apart(known.opt_array)
    if _VOLATILE & set(options):
        raise DetachedError(
            "the overlay is volatile, and the kernel mounts its upper directory once only: mount"
            " the overlay somewhere before the dump"
        )
    source, layers = _trial(named, options)
    twins = LayerTwins(layers, paths.from_link(known.root_path))
    try:
        _check_held(fd, mnt_id, source.fd, twins)
        source.info.super_options = [b"ro" if known.sb_flags & 1 else b"rw"]
        source.twins = twins
        source.filesystem = Filesystem(
            id=number,
            superblock=superblock_of(fd, b"overlay"),
            source=known.sb_source,
            options=[*superblock_flags(known.sb_flags), *options],
            fresh=1,
            keeps_inodes=int(_has_lasting_inodes(fd, mnt_id, known.sb_dev)),
            layers=layers.records(),
        )
    except (DetachedError, OSError):
        layers.close()
        source.close()
        raise
    yield source


def take_apart(options: list[bytes]) -> tuple[list[tuple[bytes, bytes]], list[bytes]]:
    r"""Tell the layers of an overlay from its other options.

    A "lowerdir" lists several, with escapes, and with "::" before those that hold data alone
    (ovl_parse_param_lowerdir, fs/overlayfs/params.c).

    Returns:
        Option and path of each layer, and the options that name none.
    """
    layers: list[tuple[bytes, bytes]] = []
    others = []
    for option in options:
        name, _, value = option.partition(b"=")
        if name == _MANY_LOWER:
            layers += _split(value)
        elif name in (UPPER, WORK):
            layers.append((name, _written(value)))
        elif name in (LOWER, DATA):
            layers.append((name, value))
        else:
            others.append(option)
    return layers, others


def _written(value: bytes) -> bytes:
    """The path in an "upperdir" or "workdir": it has escapes, unless it was given as an fd."""
    path = unescape(value)
    return path if kernel.is_directory(path) else value


def _split(value: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Take a "lowerdir" apart."""
    option, path, at = LOWER, b"", 0
    while at < len(value):
        if value[at : at + 1] == b"\\":
            path += value[at : at + 2]
            at += 2
        elif value[at : at + 1] == b":":
            yield option, unescape(path)
            data = value[at : at + 2] == b"::"
            option, path = DATA if data else LOWER, b""
            at += 2 if data else 1
        else:
            path += value[at : at + 1]
            at += 1
    yield option, unescape(path)


def unescape(path: bytes) -> bytes:
    r"""Undo the backslashes before characters that would mean something else."""
    head, *parts = path.split(b"\\")
    text, literal = head, False
    for part in parts:
        if not part and not literal:
            text, literal = text + b"\\", True  # a backslash before a backslash
        else:
            text, literal = text + part, False
    return text


def _trial(named: list[tuple[bytes, bytes]], options: list[bytes]) -> tuple[Source, Layers]:
    """Mount the same layers without an upper directory, and see whose the latter is."""
    with kernel.PrivateNamespace():
        layers = Layers(named)
        try:
            upper = layers.find(UPPER)
            if upper >= 0:
                _check_upper(upper, layers)
            fds = [(LOWER, upper)] if upper >= 0 else []
            fds += [(option, fd) for option, fd in layers.fds if option in (LOWER, DATA)]
            tree = kernel.new_mount(b"overlay", b"overlay", _options_for_trial(options), fds)
            return Source(attach_for_trial(tree), False, tree), layers
        except OSError as error:
            layers.close()
            raise DetachedError(f"the layers of the overlay cannot be mounted: {error}") from error
        except DetachedError:
            layers.close()
            raise


def _options_for_trial(options: list[bytes]) -> list[bytes]:
    found = [b"index=off"]
    for option in options:
        name, _, value = option.partition(b"=")
        if name == b"redirect_dir" and value == b"on":
            found.append(b"redirect_dir=follow")
        elif name == b"uuid" and value != b"off":
            continue  # it is in the upper directory
        elif name not in _NOT_FOR_TRIAL:
            found.append(option)
    return found


def _check_upper(upper: int, layers: Layers) -> None:
    """The directory at that path must be the one that the overlay writes to."""
    where = quote(layers.paths[[name for name, _ in layers.fds].index(UPPER)])
    if not is_in_use(upper):
        raise DetachedError(
            f"{where}, the path of the overlay's upper directory, is another directory where criu"
            " runs: was it moved, or is the overlay from another mount namespace?"
        )
    work = layers.find(WORK)
    if work < 0 or kernel.fstat(work).dev != kernel.fstat(upper).dev:
        raise DetachedError(
            "the path of the overlay's work directory is another directory where criu runs"
        )


def is_in_use(upper: int) -> bool:
    """Tell whether a directory is the upper or work directory of an overlay that is mounted.

    The kernel says so before it looks at the work directory, which is one that it refuses
    (ovl_get_upper and ovl_get_workdir, fs/overlayfs/super.c). So nothing gets mounted, and
    nothing is written. Within a private mount namespace.

    Raises:
        OSError: the answer is another.
    """
    other = kernel.new_mount(b"tmpfs", b"tmpfs", [])
    try:
        attach_for_trial(other)
        fds = [(LOWER, other), (UPPER, upper), (WORK, other)]
        os.close(kernel.new_mount(b"overlay", b"overlay", [b"index=on"], fds))
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.EINVAL):
            raise
        return error.errno == errno.EBUSY
    finally:
        os.close(other)
    raise OSError(errno.EINVAL, "an overlay with two filesystems to write to was mounted")


class LayerTwins(Twins):
    """Files of an overlay and of the trial mount of its layers.

    A file handle of an overlay (Linux 6.5) is one of the layer that the file is from. A file
    that was copied up keeps that of its origin, which the copy has noted.
    """

    def __init__(self, layers: Layers, prefix: bytes) -> None:
        """Take what it needs.

        Args:
            layers: the overlay's; they stay open.
            prefix: the root of the detached mount, beneath that of the overlay.
        """
        self._layers = layers
        self.prefix = prefix

    def is_one(self, fd: int, facts: FileFacts, twin: int, found: FileFacts, path: bytes) -> bool:
        """Compare what layer they are from, and what file there."""
        return self.is_one_at(fd, twin, paths.join(self.prefix, path))

    def is_one_at(self, fd: int, twin: int, path: bytes) -> bool:
        """As is_one; the path is beneath the overlay's root."""
        handle = _handle(fd)
        if handle is None:
            return False
        if handle == _handle(twin):
            return True
        for option, layer in self._layers.fds:
            try:
                real = paths.open_at(layer, path)
            except OSError:
                continue
            try:
                if option == UPPER and handle == _origin(real):
                    return True
                kind, data = kernel.name_to_handle(real)
                if option in (LOWER, DATA) and (kind, data) == (handle[0], handle[2]):
                    return True
            except OSError:
                continue
            finally:
                os.close(real)
        return False


def _handle(fd: int) -> tuple[int, bytes, bytes] | None:
    """Type, UUID of the layer's filesystem and handle there, of a file of an overlay."""
    try:
        _, data = kernel.name_to_handle(fd, kernel.AT_HANDLE_FID)
    except OSError:
        return None
    return real_handle(data[3:])  # struct ovl_fh: padded


def real_handle(data: bytes) -> tuple[int, bytes, bytes] | None:
    """Take a struct ovl_fb apart (fs/overlayfs/overlayfs.h).

    It has a byte each of version, magic, length, flags and type, then UUID and handle.
    """
    if len(data) < 21 or data[1] != 0xFB or data[2] > len(data):
        return None
    return data[4], data[5:21], data[21 : data[2]]


def _origin(real: int) -> tuple[int, bytes, bytes] | None:
    """The handle that a copy in the upper directory has of what it was copied from."""
    for name in ("trusted.overlay.origin", "user.overlay.origin"):
        try:
            return real_handle(os.getxattr(b"/proc/self/fd/%d" % real, name))
        except OSError:
            continue
    return None


def _check_held(fd: int, mnt_id: int, trial: int, twins: LayerTwins) -> None:
    """See that the trial mount shows the held files, and all that a directory leads to."""
    directory = -1
    for held in [fd, *_dup(held_files(mnt_id))]:
        try:
            link = os.readlink(b"/proc/self/fd/%d" % held)
            if link.endswith(paths.DELETED):
                continue  # what is deleted is saved
            path = paths.join(twins.prefix, paths.from_link(link))
            _check_one(held, trial, path, twins)
            if directory < 0 and is_directory(held):
                directory = climb(os.dup(held))
        finally:
            if held != fd:
                os.close(held)
    if directory < 0:
        return
    try:
        _check_tree(directory, trial, twins)
    finally:
        os.close(directory)


def _dup(fds: Iterator[int]) -> list[int]:
    return [os.dup(fd) for fd in fds]


def _check_one(fd: int, trial: int, path: bytes, twins: LayerTwins) -> None:
    try:
        twin = paths.open_at(trial, path)
    except OSError as error:
        raise _other_layers(path) from error
    try:
        if not twins.is_one_at(fd, twin, path):
            raise _other_layers(path)
    finally:
        os.close(twin)


def _check_tree(directory: int, trial: int, twins: LayerTwins) -> None:
    """Compare what a directory of the overlay leads to, up to a limit."""
    queue, seen = [twins.prefix], 0
    for path in queue:
        inside = _below(path, twins.prefix)
        here = there = -1
        try:
            here = paths.open_at(directory, inside)
            there = paths.open_at(trial, path)
            names = names_in(here)
            if names != names_in(there):
                raise _other_layers(path)
            for name in names:
                entry = paths.join(path, name)
                mode = kernel.stat_beneath(here, name).mode
                if stat.S_ISDIR(mode):
                    queue.append(entry)
                else:
                    _check_entry(here, name, trial, entry, twins)
            seen += len(names)
        except OSError as error:
            raise _other_layers(path) from error
        finally:
            for fd in (here, there):
                if fd >= 0:
                    os.close(fd)
        if seen > SEARCH_LIMIT:
            return


def _check_entry(here: int, name: bytes, trial: int, path: bytes, twins: LayerTwins) -> None:
    fd = paths.open_at(here, name)
    try:
        _check_one(fd, trial, path, twins)
    finally:
        os.close(fd)


def _below(path: bytes, prefix: bytes) -> bytes:
    """A path beneath the overlay's root as one beneath the mount's root."""
    if path == prefix:
        return paths.ROOT
    return path if prefix == paths.ROOT else path[len(prefix) + 1 :]


def _other_layers(path: bytes) -> DetachedError:
    return DetachedError(
        f"{quote(path)} of the overlay is not, or not surely, what its layers show where criu"
        " runs: were they moved or changed, or is the overlay from another mount namespace?"
    )


def _has_lasting_inodes(fd: int, mnt_id: int, dev: int) -> bool:
    """Tell whether files have the overlay's own device number: their inodes last then.

    Source: Documentation/filesystems/overlayfs.rst, "Inode properties".
    """
    for held in [fd, *_dup(held_files(mnt_id))]:
        facts = kernel.fstat(held)
        if held != fd:
            os.close(held)
        if not stat.S_ISDIR(facts.mode) and facts.dev == dev:
            return True
    return False
