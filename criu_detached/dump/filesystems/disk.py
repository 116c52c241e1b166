# SPDX-License-Identifier: GPL-2.0-only
"""Filesystems that lie elsewhere than in memory: they are mounted again.

At dump this is tried in a mount namespace of this process alone. The kernel gives the
superblock that is there already (sget_fc, fs/super.c), so the trial changes nothing, and
it shows the options and the files.
"""

from __future__ import annotations

import os

from criu_detached import devices, kernel, log, mountinfo
from criu_detached.dump.sources import Source
from criu_detached.errors import DetachedError, quote
from criu_detached.mountinfo import MountInfo
from criu_detached.records import BlockDevice, Filesystem
from criu_detached.superblock import superblock_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from criu_detached.devices import Found
    from criu_detached.kernel import StatMount

_SB_RDONLY = 1  # linux/fs.h

# What mountinfo shows among a superblock's options, and is not one: a mark that the security
# module sets, and the subvolume of btrfs that one mount shows.
_NO_OPTIONS = {b"seclabel", b"subvol", b"subvolid"}

# Options that steer how a filesystem works, and not what is seen in it.
_NOT_SEEN = {
    b"attr2",
    b"autodefrag",
    b"commit",
    b"compress",
    b"compress-force",
    b"delalloc",
    b"discard",
    b"ikeep",
    b"inode64",
    b"largeio",
    b"logbsize",
    b"logbufs",
    b"nodelalloc",
    b"nodiscard",
    b"noikeep",
    b"nolargeio",
    b"nossd",
    b"space_cache",
    b"ssd",
    b"ssd_spread",
    b"stripe",
    b"sunit",
    b"swidth",
    b"thread_pool",
    b"threads",
}

# Options that name another device.
_NAME_DEVICES = {b"device", b"journal_dev", b"journal_path", b"logdev", b"rtdev", b"source"}

# linux/magic.h: types of filesystem, which kernels before 7.0 do not name. Of those with one
# number only the living one is mounted: it has claimed the device.
_TYPES = {
    0xEF53: [b"ext4", b"ext3", b"ext2"],
    0x58465342: [b"xfs"],
    devices.BTRFS_MAGIC: [b"btrfs"],
    0x73717368: [b"squashfs"],
    0xE0F5E1E2: [b"erofs"],
    0x4D44: [b"vfat", b"msdos"],
    0x2011BAB0: [b"exfat"],
    0xF2F52010: [b"f2fs"],
    0x9660: [b"iso9660"],
    0x15013346: [b"udf"],
    0x3434: [b"nilfs2"],
    0x3153464A: [b"jfs"],
    0x4244: [b"hfs"],
    0x482B: [b"hfsplus"],
    0x7366746E: [b"ntfs3"],
    0x28CD3D45: [b"cramfs"],
    0x7275: [b"romfs"],
    0x137F: [b"minix"],
    0x138F: [b"minix"],
    0x2468: [b"minix"],
    0x2478: [b"minix"],
    0x4D5A: [b"minix"],
}


def remounted(fd: int, dev: int, known: StatMount | None, number: int) -> Iterator[Source]:
    """Yield, opened, the trial mount of a file's filesystem, if it lies on a block device.

    Args:
        fd: the file.
        dev: device of its superblock, or of the file.
        known: what statmount says of its mount, where the kernel can.
        number: for the record.

    Raises:
        DetachedError: it lies on one, and cannot be mounted again.
    """
    fs = kernel.fstatfs(fd)
    types = [known.fs_type] if known else _TYPES.get(fs.magic, [])
    types = [name for name in types if devices.needs_device(name)]
    if not types:
        return
    for numbers in devices.under(dev, fs):
        found = [devices.describe_device(one) for one in numbers]
        for device in found:
            devices.check_living(fd, fs, device)
        source = _try(types, found, _read_only(known, fs.flags), number)
        # Where the type is not known the device may be that of a subvolume of btrfs.
        if source.info.dev != dev and (os.major(dev) or known):
            source.close()
            continue
        yield source


def _read_only(known: StatMount | None, flags: int) -> list[bool]:
    """Which ways to mount lead to the living superblock: it has to be asked for as it is.

    A kernel that does not say so gets asked for less first. What does not fit is EBUSY.
    """
    if known:
        return [bool(known.sb_flags & _SB_RDONLY)]
    return [True, False] if flags & os.ST_RDONLY else [False]


def _try(types: list[bytes], found: list[BlockDevice], ways: list[bool], number: int) -> Source:
    path = found[0].path
    refusal: OSError | None = None
    try:
        with kernel.PrivateNamespace():
            for fs_type, read_only in [(name, way) for name in types for way in ways]:
                options = [b"ro" if read_only else b"rw", *_of_type(fs_type, [])]
                try:
                    tree = kernel.new_mount(fs_type, path, options)
                except OSError as error:
                    refusal = refusal or error
                    continue
                return _source(tree, _attach(tree), found, number)
    except OSError as error:
        raise DetachedError(
            f"can't make a mount namespace to look into {quote(path)}: {error}"
        ) from error
    raise DetachedError(
        f"its block device {quote(path)} cannot be mounted beside what is mounted: {refusal}"
    )


def _source(tree: int, info: MountInfo, found: list[BlockDevice], number: int) -> Source:
    try:
        filesystem = Filesystem(
            id=number,
            superblock=superblock_of(tree, info.fs_type),
            source=found[0].path,
            options=_kept_options(info),
            devices=found,
        )
    except DetachedError:
        os.close(tree)
        raise
    return Source(info, False, tree, filesystem=filesystem)


def _kept_options(info: MountInfo) -> list[bytes]:
    """The options that a superblock shows, if a mount takes them.

    Raises:
        DetachedError: it does not.
    """
    shown = _options(info)
    for option in shown:
        if _name(option) in _NAME_DEVICES:
            raise DetachedError(
                f"its filesystem has a device of its own for its log ({quote(option)}): that is"
                " not looked for at a restore"
            )
    for option, error in kernel.refused_options(info.fs_type, shown):
        if _name(option) not in _NOT_SEEN:
            raise DetachedError(
                f"its filesystem has the option {quote(option)}, which no mount is given: {error}"
            )
        log.warn(f"the option {quote(option)} of a filesystem is not kept: {error}")
        shown.remove(option)
    return shown


def _options(info: MountInfo) -> list[bytes]:
    options = [mountinfo.unescape(option) for option in info.super_options]
    return [option for option in options if _name(option) not in _NO_OPTIONS]


def _name(option: bytes) -> bytes:
    return option.partition(b"=")[0]


def _of_type(fs_type: bytes, others: list[bytes]) -> list[bytes]:
    """Options that a type needs: btrfs has roots of mounts counted from its top, and members."""
    if fs_type != b"btrfs":
        return []
    return [b"subvolid=5", *(b"device=" + path for path in others)]


def _info(tree: int) -> MountInfo:
    """What the mount table says of a mount in this namespace."""
    mnt_id = kernel.fstat(tree).mnt_id
    (info,) = (info for info in mountinfo.read_mountinfo() if info.mnt_id == mnt_id)
    return info


def _attach(tree: int) -> MountInfo:
    """Attach a mount in this namespace, where it can be looked at."""
    root = os.open("/", kernel.O_PATH)
    try:
        kernel.attach(tree, root)
        return _info(tree)
    except BaseException:
        os.close(tree)
        raise
    finally:
        os.close(root)


def find_devices(filesystem: Filesystem) -> list[Found]:
    """Find what a filesystem lies on, opened; the caller closes it.

    Not in the mount namespace that it is mounted in, which will be gone: the backing file of
    a loop device would be on a detached mount then.

    Raises:
        DetachedError: it is not there, or the record is none that a dump writes.
    """
    _check(filesystem)
    found: list[Found] = []
    try:
        for device in filesystem.devices:
            found += [devices.find_device(device)]
        for one in found:
            one.claimed = devices.is_claimed(one.path)
    except DetachedError:
        for one in found:
            one.close()
        raise
    return found


def mount_again(filesystem: Filesystem, found: list[Found]) -> int:
    """Mount a filesystem as it was.

    Args:
        filesystem: its record, checked.
        found: its devices.

    Returns:
        A tree fd of the mount, the caller's.

    Raises:
        DetachedError: it cannot be mounted.
    """
    if not found or filesystem.superblock is None:
        raise _damaged(filesystem)
    fs_type = filesystem.superblock.fs_type
    options = filesystem.options + _of_type(fs_type, [one.path for one in found[1:]])
    if fs_type == b"btrfs" and found[0].claimed and b"rw" in options:
        # Asked to be writable, it would make a read-only one so (btrfs_reconfigure_for_mount).
        options[options.index(b"rw")] = b"ro"
    try:
        return kernel.new_mount(fs_type, found[0].path, options)
    except OSError as error:
        in_use = ": it is mounted in another way, or in use; free it" if found[0].claimed else ""
        raise DetachedError(
            f"can't mount {_named(filesystem, found)} again ({error}){in_use}"
        ) from error


def _named(filesystem: Filesystem, found: list[Found]) -> str:
    assert filesystem.superblock is not None
    return f"{quote(filesystem.superblock.fs_type)} on {quote(found[0].path)}"


def _check(filesystem: Filesystem) -> None:
    """Refuse a record that no dump writes: it might mount anything."""
    superblock = filesystem.superblock
    names = {_name(option) for option in filesystem.options}
    if (
        superblock is None
        or not filesystem.devices
        or not devices.needs_device(superblock.fs_type)
        or names & (_NAME_DEVICES | _NO_OPTIONS | {b""})
        or any(b"\0" in option for option in filesystem.options)
    ):
        raise _damaged(filesystem)


def _damaged(filesystem: Filesystem) -> DetachedError:
    return DetachedError(
        f"filesystem {filesystem.id} lies on no block device, or has options that no dump writes:"
        " are the images damaged?"
    )


def check_mounted(filesystem: Filesystem, tree: int, found: list[Found]) -> None:
    """Look at what was mounted: of a living filesystem the kernel gives that one.

    Args:
        filesystem: its record.
        tree: its mount, attached in this mount namespace.
        found: its devices.

    Raises:
        DetachedError: it is mounted elsewhere too, and has other options by now.
    """
    what, shared = _named(filesystem, found), found[0].claimed
    info = _info(tree)
    # Where a superblock has a number of its own, what was found tells enough.
    if os.major(info.dev) and info.dev != kernel.fstat(found[0].fd).rdev:
        raise DetachedError(f"{what} is not what was mounted")
    wanted, have = set(filesystem.options), set(_options(info))
    lost, new = sorted(wanted - have), sorted(have - wanted)
    if not lost and not new:
        log.info(f"{what} is {'shared with another mount' if shared else 'mounted again'}")
        return
    change = (
        f"{what} has {quote(b','.join(new)) or 'no option'}, where it had"
        f" {quote(b','.join(lost)) or 'none'}"
    )
    if shared and not _NOT_SEEN.issuperset(_name(option) for option in lost + new):
        raise DetachedError(f"{change}: it is mounted elsewhere; unmount it there")
    log.warn(change)
