# SPDX-License-Identifier: GPL-2.0-only
"""Block devices that filesystems lie on, and how one is known again.

A name says little: devices are numbered as they are found. What libblkid, the library of
mount(8) and udev, reads from the device says which filesystem it carries. Only in CRIU's
own process.
"""

from __future__ import annotations

import errno
import os
import stat
from binascii import crc32

from criu_detached import kernel
from criu_detached.errors import DetachedError, quote, why
from criu_detached.filesystems import loops
from criu_detached.filesystems.types import BTRFS, EXT, NEVER_WRITTEN, by_magic, by_name
from criu_detached.images.records import BlockDevice, Loop
from criu_detached.kernel import blkid, new_mounts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from criu_detached.kernel import StatFs

_CLASS = b"/sys/class/block"
_BTRFS = "/sys/fs/btrfs"

# Bytes of what is written once, when it is made: few such types have a UUID.
_CHECKED = 64 << 10

_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # no drive closes its tray for it


def needs_device(fs_type: bytes) -> bool:
    """Tell whether a type of filesystem lies on a block device, and on nothing else."""
    if fs_type == b"fuseblk" or not fs_type.replace(b"_", b"").replace(b"-", b"").isalnum():
        return False
    try:
        new_mounts.refused_options(fs_type, [])  # its module is loaded with it
    except OSError:
        return False
    with open("/proc/filesystems", "rb") as file:
        return b"\t" + fs_type in file.read().split(b"\n")


def under(dev: int, fs: StatFs) -> Iterator[list[int]]:
    """Yield the numbers of the block devices that a living superblock may lie on.

    Args:
        dev: its device number, or that of a file on it.
        fs: what statfs(2) says of the file.
    """
    if os.major(dev):  # else the number is one that the kernel made up
        yield [dev]
    elif by_magic(fs.magic) is BTRFS and kernel.is_directory(_BTRFS):
        for uuid in os.listdir(_BTRFS):
            if len(uuid) == 36 and _fold(bytes.fromhex(uuid.replace("-", "")), 4) == fs.fsid & _LOW:
                names = sorted(os.listdir(f"{_BTRFS}/{uuid}/devices"))
                yield [_number_of(os.fsencode(name)) for name in names]


_LOW = 0xFFFFFFFF


def _fold(uuid: bytes, size: int) -> int:
    """The first half of f_fsid of btrfs (4), where the second has the subvolume; ext4's (8)."""
    one, other = uuid[:size], uuid[8 : 8 + size]
    if size == 4:
        return int.from_bytes(one, "big") ^ int.from_bytes(other, "big")
    return int.from_bytes(one, "little") ^ int.from_bytes(other, "little")


def _number_of(name: bytes) -> int:
    major, _, minor = loops.attribute(name, b"dev").partition(b":")
    return os.makedev(int(major or 0), int(minor or 0))


def describe_device(dev: int) -> BlockDevice:
    """Describe a block device that a living superblock lies on.

    Raises:
        DetachedError: it is gone or another one, or could not be known again.
    """
    name = _name_of(dev)
    path = b"/dev/" + name
    fd = _open_number(path, dev)
    try:
        _refuse_free(path)
        record = _identify(fd, path)
    finally:
        os.close(fd)
    record.loop = loops.describe_loop(os.readlink(_sys(dev)).split(b"/")[-1])
    return record


def _sys(dev: int) -> bytes:
    return b"/sys/dev/block/%d:%d" % (os.major(dev), os.minor(dev))


def _name_of(dev: int) -> bytes:
    """Name of a device's node in /dev, as the kernel has it."""
    try:
        with open(_sys(dev) + b"/uevent", "rb") as uevent:
            for line in uevent.read().split(b"\n"):
                if line.startswith(b"DEVNAME="):
                    return line.removeprefix(b"DEVNAME=")
    except OSError:
        pass
    raise DetachedError(
        f"its block device {os.major(dev)}:{os.minor(dev)} is gone: a restore could not find the"
        " filesystem again"
    )


def _open_number(path: bytes, dev: int) -> int:
    try:
        fd = os.open(path, _OPEN)
    except OSError as error:
        raise DetachedError(
            f"its block device {quote(path)} cannot be opened: {why(error)}"
        ) from error
    facts = kernel.fstat(fd)
    if stat.S_ISBLK(facts.mode) and facts.rdev == dev:
        return fd
    os.close(fd)
    raise DetachedError(f"{quote(path)} is not block device {os.major(dev)}:{os.minor(dev)}")


def is_claimed(path: bytes) -> bool:
    """Tell whether a mounted filesystem, or something else, has a device for itself (open(2)).

    Args:
        path: its node.

    Raises:
        DetachedError: it cannot be opened.
    """
    try:
        os.close(os.open(path, _OPEN | os.O_EXCL))
    except OSError as error:
        if error.errno == errno.EBUSY:
            return True
        raise DetachedError(f"{quote(path)} cannot be opened: {error}") from error
    return False


def _refuse_free(path: bytes) -> None:
    """A device that nothing claims carries no living superblock: mounting it would write to it."""
    if not is_claimed(path):
        raise DetachedError(
            f"its block device was replaced: {quote(path)} has the number now, and is in no use"
        )


def check_living(fd: int, fs: StatFs, device: BlockDevice) -> None:
    """Compare what the kernel says of a living superblock with what lies on its device.

    Args:
        fd: a file on it.
        fs: what statfs(2) says of that.
        device: as described.

    Raises:
        DetachedError: they are two.
    """
    uuid = bytes.fromhex(device.uuid.replace(b"-", b"").decode()) if _is_uuid(device) else b""
    living = kernel.fs_uuid(fd)
    other = len(living) == 16 and uuid != b"" and living != uuid
    if by_magic(fs.magic) is EXT and uuid:
        other = other or _fold(uuid, 8) != fs.fsid
    if other:
        raise DetachedError(
            f"its block device {quote(device.path)} carries another filesystem, {describe(device)}"
        )


def _is_uuid(device: BlockDevice) -> bool:
    """Tell a UUID from the shorter serials of other filesystems."""
    digits = device.uuid.replace(b"-", b"")
    return len(digits) == 32 and not digits.strip(b"0123456789abcdefABCDEF")


def _identify(fd: int, path: bytes, offset: int = 0) -> BlockDevice:
    """What lies on a device, or in an image file at an offset.

    Raises:
        DetachedError: nothing, or nobody can tell.
    """
    try:
        fs_type, uuid, uuid_sub = blkid.blkid_probe(fd, offset)
        never_written = by_name(fs_type).has(NEVER_WRITTEN)  # libblkid has the same names
        checksum = crc32(os.pread(fd, _CHECKED, offset)) if never_written else 0
        size = os.lseek(fd, 0, os.SEEK_END)
    except OSError as error:
        if error.errno == errno.ELIBACC:
            what = "libblkid.so.1 is not installed: it tells one filesystem from another"
        elif error.errno == errno.ENODATA:
            what = "it carries no filesystem"
        else:
            what = why(error)
        raise DetachedError(f"{quote(path)}: {what}") from error
    return BlockDevice(
        path=path, size=size, type=fs_type, uuid=uuid, uuid_sub=uuid_sub, checksum=checksum
    )


def describe(device: BlockDevice) -> str:
    """Name what lies on a device, for a message."""
    known = [quote(device.uuid)] if device.uuid else []
    if not _is_uuid(device):
        known.append(f"{device.size} bytes")
    return f"{quote(device.type)} ({', '.join(known)})"


def _is_same(wanted: BlockDevice, found: BlockDevice) -> bool:
    """Tell whether a device carries the filesystem. One with a UUID may have grown."""
    facts = (wanted.type, wanted.uuid, wanted.uuid_sub, wanted.checksum)
    return facts == (found.type, found.uuid, found.uuid_sub, found.checksum) and (
        _is_uuid(wanted) or wanted.size == found.size
    )


class Found:
    """A device that carries a filesystem; it is held open, and a new loop device by that alone."""

    def __init__(self, path: bytes, fd: int) -> None:
        self.path = path
        self.fd = fd
        self.claimed = False  # something has it mounted already

    def close(self) -> None:
        """Let go of it."""
        os.close(self.fd)


class _Search:
    """The search for one device, with the reasons why others are not it."""

    def __init__(self, wanted: BlockDevice) -> None:
        self.wanted = wanted
        self.notes: list[str] = []

    def run(self) -> Found:
        wanted = self.wanted
        if wanted.loop is None and (found := self._open(wanted.path, noted=True)):
            return found
        if wanted.loop is not None and (found := self._loop(wanted.loop)):
            return found
        if found := self._anywhere():
            return found
        notes = "".join(f"; {note}" for note in self.notes)
        raise DetachedError(
            f"no block device carries the filesystem {describe(wanted)} that was on"
            f" {quote(wanted.path)}: connect it again, or supply its mounts{notes}"
        )

    def _open(self, path: bytes, noted: bool = False) -> Found | None:
        """Open a device if it is the one. What is no block device is not touched."""
        try:
            if not stat.S_ISBLK(os.stat(path).st_mode):
                return None
            fd = os.open(path, _OPEN)
        except OSError as error:
            if noted:
                self.notes.append(f"{quote(path)}: {why(error)}")
            return None
        try:
            found = _identify(fd, path)
            if _is_same(self.wanted, found):
                kept, fd = fd, -1
                return Found(path, kept)
            if noted:
                self.notes.append(f"{quote(path)} carries {describe(found)}")
        except DetachedError as error:
            if noted:
                self.notes.append(str(error))
        finally:
            if fd >= 0:
                os.close(fd)
        return None

    def _loop(self, loop: Loop) -> Found | None:
        """A loop device over the same file, one that is there or a new one.

        Never a second one for a filesystem that is mounted from a first: both would write.
        """
        there = list(filter(None, map(self._open, loops.loops_over(loop.file))))
        there.sort(key=lambda one: (not is_claimed(one.path), one.path != self.wanted.path))
        for other in there[1:]:
            other.close()
        if there:
            return there[0]
        try:
            file = loops.open_file(loop)
        except OSError as error:
            self.notes.append(f"its backing file {quote(loop.file)}: {why(error)}")
            return None
        try:
            if not loop.partition and not self._is_image(file, loop):
                return None
            fd, name = loops.attach(loop, file)
        finally:
            os.close(file)
        try:
            return self._open(loops.node_of(name, loop), noted=True)
        finally:
            os.close(fd)  # if it is not the one, the loop device goes with it

    def _is_image(self, file: int, loop: Loop) -> bool:
        try:
            found = _identify(file, loop.file, loop.offset)
        except DetachedError as error:
            self.notes.append(f"its backing file {error}")
            return False
        found.size = self.wanted.size  # that of a loop device may end before its file
        same = _is_same(self.wanted, found)
        if not same:
            self.notes.append(f"its backing file {quote(loop.file)} holds {describe(found)}")
        return same

    def _anywhere(self) -> Found | None:
        """Look at every device, if what is known of the one would tell it from all others."""
        if not self.wanted.uuid and not self.wanted.checksum:
            return None
        found: list[Found] = []
        for name in sorted(os.listdir(_CLASS)):
            if loops.attribute(name, b"size") == b"0" or _is_part_of_another(name):
                continue
            one = self._open(b"/dev/" + name.replace(b"!", b"/"))
            if one:
                found.append(one)
        for other in found[1:]:
            other.close()
        if len(found) > 1:
            found[0].close()
            paths = " and ".join(quote(one.path) for one in found)
            raise DetachedError(
                f"{paths} all carry the filesystem {describe(self.wanted)} that was on"
                f" {quote(self.wanted.path)}: which one is it? disconnect the others"
            )
        return found[0] if found else None


def _is_part_of_another(name: bytes) -> bool:
    """Tell whether other block devices are made of this one (RAID, multipath, LVM)."""
    try:
        return bool(os.listdir(_CLASS + b"/" + name + b"/holders"))
    except OSError:
        return False


def find_device(wanted: BlockDevice) -> Found:
    """Find the device that carries a filesystem by now, or set its loop device up again.

    Args:
        wanted: its record.

    Returns:
        It, opened; the caller closes it.

    Raises:
        DetachedError: there is none, or there are several.
    """
    if not wanted.path.startswith(b"/dev/") or b"\0" in wanted.path:
        raise DetachedError(f"a filesystem has the invalid device {quote(wanted.path)}")
    return _Search(wanted).run()
