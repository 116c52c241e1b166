# SPDX-License-Identifier: GPL-2.0-only
"""Numbers in records that are too large for what the kernel, or CRIU, keeps them in.

Each check_X() raises WireError when one is.
"""

from __future__ import annotations

from criu_detached.images.wire import WireError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from criu_detached.images.records import (
        BoundSocket,
        ExtFile,
        File,
        Filesystem,
        Inode,
        Mount,
        Node,
        Time,
    )

_SECOND = 1_000_000_000  # nanoseconds


def check_mount(mount: Mount) -> None:
    """Check the numbers of a mount."""
    source = mount.bind_source
    _check(mount.mnt_id, 32)
    _check(source.mnt_id if source else 0, 31)
    _check(mount.root_type, 32)


def check_filesystem(filesystem: Filesystem) -> None:
    """Check the numbers of a filesystem, and of its loop devices."""
    _check(filesystem.id, 32)
    for device in filesystem.devices:
        if device.loop:
            _check(device.loop.offset, 62)
            _check(device.loop.size_limit, 62)
            _check(device.loop.flags, 32)
            _check(device.loop.block_size, 32)


def check_node(node: Node) -> None:
    """Check the numbers of a node."""
    _check(node.mode, 32)
    _check_inode(node.inode)


def check_ghost(file: File, inode: Inode | None) -> None:
    """Check the numbers of a deleted file.

    Args:
        file: what its record says of the file.
        inode: what it is made from, if it is.
    """
    _check(file.mode, 32)
    _check(file.handle.type if file.handle else 0, 31)
    _check_inode(inode)


def check_ext_file(file: ExtFile) -> None:
    """Check the numbers of an external file."""
    _check(file.id, 32)
    _check(file.flags, 31)
    _check(file.pos, 63)


def check_bound_socket(socket: BoundSocket) -> None:
    """Check the numbers of a socket's name."""
    _check(socket.id, 31)


def _check_inode(inode: Inode | None) -> None:
    if inode is None:
        return
    _check(inode.uid, 32)
    _check(inode.gid, 32)
    _check(inode.size, 63)
    _check(inode.data_at, 62)
    _check(inode.data_size, 62)
    _check_time(inode.atime)
    _check_time(inode.mtime)


def _check_time(time: Time | None) -> None:
    if time and time.nsec >= _SECOND:
        raise WireError(f"{time.nsec} nanoseconds are larger than a second")


def _check(number: int, bits: int) -> None:
    if number >> bits:
        raise WireError(f"{number} is larger than {bits} bits")
