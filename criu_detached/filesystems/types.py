# SPDX-License-Identifier: GPL-2.0-only
"""The one table of filesystem types: a row each, and no magic number anywhere else.

To add a type, add its row. How it comes back follows from the class of the row; a class of its
own needs a function in dump/filesystems/soleheld.py and one in restore/filesystems/make.py.

The table is data and imports nothing, so every layer may read it.
"""

from __future__ import annotations

# How a filesystem comes back where no attached mount shows it.
IN_MEMORY = "in memory"  # recreated with its contents
ON_DEVICE = "on a device"  # remounted from its block device
LAYERED = "layered"  # an overlay, mounted of its layers
FRESH = "fresh"  # mounted from nothing: a new superblock, so what was in it is lost
KEYED = "keyed"  # mounted from nothing: the superblock that is there already
BY_SERVER = "by its server"  # it alone can mount it
INTERNAL = "internal"  # nobody mounts it but the kernel
NOT_AT_ALL = "not at all"

# Traits that a type may have.
VOLATILE_INODES = "volatile inodes"  # numbers change while it is mounted, or a server makes them up
MANY_DEVICES = "many devices"  # files show other device numbers than their superblock
MADE_UP_DEVICE = "made-up device"  # on block devices, though its device number is none's
SHARES_DATA = "shares data"  # two files may have the same blocks
POWER_OF_MOUNTER = "power of mounter"  # its files may do what whoever mounted it may
NEVER_WRITTEN = "never written"  # but when it is made
SET_BY_MOUNTING = "set by mounting"  # mounting sets the options of the superblock that is there


class FilesystemType:
    """A row: what is known of a type."""

    __slots__ = ("magic", "names", "traits")

    comes_back = NOT_AT_ALL
    key = ""  # what the kernel has one superblock of it for
    server = ""  # what serves it, for messages
    silly_prefix = b""  # of the name that a deleted file has until it is closed
    stands_for = ""  # what each of its files is a handle of

    def __init__(self, magic: int, names: bytes, *traits: str) -> None:
        """Describe a type.

        Args:
            magic: its number, which statfs(2) tells (linux/magic.h, fs/*/super.c).
            names: that it is mounted by, with blanks between; the first is for messages.
            traits: those above that it has.
        """
        self.magic = magic
        self.names = names.split()
        self.traits = traits

    def has(self, trait: str) -> bool:
        """Tell whether the type has a trait."""
        return trait in self.traits


class InMemory(FilesystemType):
    """Its files are in memory alone."""

    __slots__ = ()
    comes_back = IN_MEMORY


class OnDevice(FilesystemType):
    """It lies on a block device, or on several.

    Kernels before 7.0 do not tell its name, so each is tried: only the living filesystem is
    mounted then, for it has claimed the device.
    """

    __slots__ = ()
    comes_back = ON_DEVICE


class Layered(FilesystemType):
    """It shows the directories that it is mounted of."""

    __slots__ = ()
    comes_back = LAYERED


class Fresh(FilesystemType):
    """The kernel makes its files, and a new superblock with each mount."""

    __slots__ = ()
    comes_back = FRESH


class Keyed(FilesystemType):
    """The kernel makes its files, and has one superblock for each of something."""

    __slots__ = ("key",)
    comes_back = KEYED

    def __init__(self, magic: int, name: bytes, key: str, *traits: str) -> None:
        """Describe such a type.

        Args:
            magic: as of FilesystemType.
            name: that it is mounted by.
            key: what the kernel has one superblock of it for.
            traits: as of FilesystemType.
        """
        super().__init__(magic, name, *traits)
        self.key = key


class ServerBacked(FilesystemType):
    """A server has its files."""

    __slots__ = ("server", "silly_prefix")
    comes_back = BY_SERVER

    def __init__(self, magic: int, names: bytes, server: str, silly: bytes, *traits: str) -> None:
        """Describe such a type.

        Args:
            magic: as of FilesystemType.
            names: likewise.
            server: what serves it, for messages.
            silly: how the name starts that a deleted file has until it is closed; empty: it has
                none.
            traits: as of FilesystemType.
        """
        super().__init__(magic, names, *traits)
        self.server = server
        self.silly_prefix = silly


class Internal(FilesystemType):
    """The kernel alone mounts it."""

    __slots__ = ("stands_for",)
    comes_back = INTERNAL

    def __init__(self, magic: int, name: bytes, stands_for: str = "") -> None:
        """Describe such a type.

        Args:
            magic: as of FilesystemType.
            name: for messages.
            stands_for: what each of its files is a handle of. Such a file can be bind-mounted, and
                is the only one of its mount.
        """
        super().__init__(magic, name)
        self.stands_for = stands_for


# Rows that code names.
TMPFS = InMemory(0x01021994, b"tmpfs")
OVERLAY = Layered(0x794C7630, b"overlay", MANY_DEVICES, SHARES_DATA, POWER_OF_MOUNTER)
PROC = Fresh(0x9FA0, b"proc")
DEVPTS = Fresh(0x1CD1, b"devpts", POWER_OF_MOUNTER)
BPF = Fresh(0xCAFE4A11, b"bpf", POWER_OF_MOUNTER)
BINFMT_MISC = Keyed(0x42494E4D, b"binfmt_misc", "user namespace")
EXT = OnDevice(0xEF53, b"ext4 ext3 ext2")
BTRFS = OnDevice(0x9123683E, b"btrfs", MANY_DEVICES, MADE_UP_DEVICE, SHARES_DATA)
HUGETLBFS = FilesystemType(0x958458F6, b"hugetlbfs")

_ROWS = (
    TMPFS,
    InMemory(0x858458F6, b"ramfs"),
    OVERLAY,
    PROC,
    DEVPTS,
    BPF,
    BINFMT_MISC,
    Keyed(0x62656572, b"sysfs", "network namespace"),
    Keyed(0x19800202, b"mqueue", "IPC namespace"),
    Keyed(0x63677270, b"cgroup2", "machine", SET_BY_MOUNTING),
    Keyed(0x62656570, b"configfs", "machine"),
    Keyed(0x64626720, b"debugfs", "machine", SET_BY_MOUNTING),
    Keyed(0x65735543, b"fusectl", "machine"),
    Keyed(0x6165676C, b"pstore", "machine"),
    Keyed(0x73636673, b"securityfs", "machine"),
    Keyed(0x74726163, b"tracefs", "machine", SET_BY_MOUNTING),
    Keyed(0xDE5E81E4, b"efivarfs", "machine"),
    EXT,
    OnDevice(0x58465342, b"xfs", SHARES_DATA),
    BTRFS,
    OnDevice(0x73717368, b"squashfs", NEVER_WRITTEN),
    OnDevice(0xE0F5E1E2, b"erofs", NEVER_WRITTEN),
    OnDevice(0x4D44, b"vfat msdos", VOLATILE_INODES),
    OnDevice(0x2011BAB0, b"exfat", VOLATILE_INODES),
    OnDevice(0xF2F52010, b"f2fs"),
    OnDevice(0x9660, b"iso9660", NEVER_WRITTEN),
    OnDevice(0x15013346, b"udf"),
    OnDevice(0x3434, b"nilfs2"),
    OnDevice(0x3153464A, b"jfs"),
    OnDevice(0x4244, b"hfs"),
    OnDevice(0x482B, b"hfsplus"),
    OnDevice(0x7366746E, b"ntfs3"),
    OnDevice(0x28CD3D45, b"cramfs", NEVER_WRITTEN),
    OnDevice(0x7275, b"romfs", NEVER_WRITTEN),
    OnDevice(0x137F, b"minix"),
    OnDevice(0x138F, b"minix"),
    OnDevice(0x2468, b"minix"),
    OnDevice(0x2478, b"minix"),
    OnDevice(0x4D5A, b"minix"),
    # bcachefs has no name here, so it is not tried where the kernel does not tell it: not tested.
    OnDevice(0xCA451A4E, b"", MANY_DEVICES, SHARES_DATA),
    # Silly renames: hidden_name (lib/fuse.c of libfuse), nfs_sillyrename (fs/nfs/dir.c),
    # cifs_sillyrename (fs/smb/client), afs_sillyrename (fs/afs/dir_silly.c). Ceph and AFS have
    # numbers of their own that last: ceph_ino of the metadata server, and the vnode of a volume.
    ServerBacked(0x65735546, b"fuse fuseblk virtiofs", "FUSE", b".fuse_hidden", VOLATILE_INODES),
    ServerBacked(0x6969, b"nfs nfs4", "NFS", b".nfs0", VOLATILE_INODES),
    ServerBacked(0xFF534D42, b"cifs smb3", "CIFS", b".__smb", VOLATILE_INODES),
    ServerBacked(0xFE534D42, b"cifs smb3", "CIFS", b".__smb", VOLATILE_INODES),
    ServerBacked(0x01021997, b"9p", "9p", b"", VOLATILE_INODES),
    ServerBacked(0x00C36400, b"ceph", "Ceph", b""),
    ServerBacked(0x6B414653, b"afs", "AFS", b".__afs"),
    Internal(0x6E736673, b"nsfs", "a namespace"),
    Internal(0x50494446, b"pidfs", "a process"),
    Internal(0x09041934, b"anon_inodefs"),
    Internal(0x50495045, b"pipefs"),
    Internal(0x534F434B, b"sockfs"),
    Internal(0x5345434D, b"secretmem"),
    Internal(0x62646576, b"bdev"),
    Internal(0x444D4142, b"dmabuf"),
    Internal(0x47414552, b"aio"),
    Internal(0x474D454D, b"kvm_guest_memory"),  # guest_memfd, from Linux 6.19 on
    HUGETLBFS,
    FilesystemType(0x6A656A63, b"fakeowner"),  # of Docker Desktop, not of Linux
)

_BY_MAGIC = {row.magic: row for row in _ROWS}

# A type that is in no row may lie on a block device: from 7.0 on the kernel tells its name.
_OTHER = OnDevice(0, b"")

_SILLY_PREFIXES = tuple({row.silly_prefix for row in _ROWS if row.silly_prefix})


def by_magic(magic: int) -> FilesystemType:
    """Look a type up by its magic number.

    Args:
        magic: the number that statfs(2) tells.

    Returns:
        Its row; for a number that has none, that of a type without a name.
    """
    return _BY_MAGIC.get(magic, _OTHER)


def by_name(name: bytes) -> FilesystemType:
    """Look a type up by a name that it is mounted by.

    Args:
        name: as mountinfo has it.

    Returns:
        Its row; for a name that has none, that of a type without a name.
    """
    return next((row for row in _ROWS if name in row.names), _OTHER)


def name_for_messages(magic: int) -> bytes:
    """Name a type, where the kernel does not.

    Args:
        magic: the number that statfs(2) tells.
    """
    names = by_magic(magic).names
    return names[0] if names else b"%#x" % magic


def is_silly_renamed(path: bytes) -> bool:
    """Tell the name that a client or server gives to a deleted file until it is closed.

    Args:
        path: of a file on a server-backed filesystem. A server may show what another one has
            renamed, so its own prefix is not the only one that counts.
    """
    return path.rpartition(b"/")[2].startswith(_SILLY_PREFIXES)
