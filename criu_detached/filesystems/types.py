# SPDX-License-Identifier: GPL-2.0-only
"""The one table of filesystem types: a row each, and no magic number anywhere else.

To add a type, add its row. A new way to come back needs a word here, a function in
dump/filesystems/soleheld.py, and one in restore/filesystems/make.py.

The table is data and imports nothing, so every layer may read it.
"""

from __future__ import annotations

# How a filesystem comes back where no attached mount shows it.
IN_MEMORY = "in memory"  # recreated with its contents
ON_DEVICE = "on a device"  # remounted from its block device, or from several
LAYERED = "layered"  # an overlay, mounted of its layers
FRESH = "fresh"  # mounted from nothing: a new superblock, so what was in it is lost
KEYED = "keyed"  # mounted from nothing: the superblock that is there already
BY_SERVER = "by its server"  # it alone can mount it
INTERNAL = "internal"  # nobody mounts it but the kernel
NOT_AT_ALL = "not at all"

# Traits that a type may have.
VOLATILE_INODES = "volatile inodes"  # numbers change while it is mounted, or a server makes them up
WRAPPING_INODES = "wrapping inodes"  # two files may have one number: see below
MANY_DEVICES = "many devices"  # files show other device numbers than their superblock
MADE_UP_DEVICE = "made-up device"  # on block devices, though its device number is none's
SHARES_DATA = "shares data"  # two files may have the same blocks
POWER_OF_MOUNTER = "power of mounter"  # its files may do what whoever mounted it may
NEVER_WRITTEN = "never written"  # but when it is made
SET_BY_MOUNTING = "set by mounting"  # mounting sets the options of the superblock that is there


class FilesystemType:
    """A row: what is known of a type."""

    __slots__ = ("comes_back", "magic", "names", "traits")

    key = ""  # what the kernel has one superblock of it for
    server = ""  # what serves it, for messages
    silly_prefix = b""  # of the name that a deleted file has until it is closed
    stands_for = ""  # what each of its files is a handle of

    def __init__(self, magic: int, names: bytes, comes_back: str, *traits: str) -> None:
        """Describe a type.

        Args:
            magic: its number, which statfs(2) tells (linux/magic.h, fs/*/super.c).
            names: that it is mounted by, with blanks between; the first is for messages.
            comes_back: how it does, of the above.
            traits: those above that it has.
        """
        self.magic = magic
        self.names = names.split()
        self.comes_back = comes_back
        self.traits = traits

    def has(self, trait: str) -> bool:
        """Tell whether the type has a trait."""
        return trait in self.traits


class Keyed(FilesystemType):
    """A row of a type that the kernel has one superblock of for each of something."""

    __slots__ = ("key",)

    def __init__(self, magic: int, name: bytes, key: str, *traits: str) -> None:
        """Describe such a type.

        Args:
            magic: as of FilesystemType.
            name: that it is mounted by.
            key: what there is one superblock for each of.
            traits: as of FilesystemType.
        """
        super().__init__(magic, name, KEYED, *traits)
        self.key = key


class ServerBacked(FilesystemType):
    """A row of a type whose files a server has."""

    __slots__ = ("server", "silly_prefix")

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
        super().__init__(magic, names, BY_SERVER, *traits)
        self.server = server
        self.silly_prefix = silly


class Internal(FilesystemType):
    """A row of a type that the kernel alone mounts."""

    __slots__ = ("stands_for",)

    def __init__(self, magic: int, name: bytes, stands_for: str = "") -> None:
        """Describe such a type.

        Args:
            magic: as of FilesystemType.
            name: for messages.
            stands_for: what each of its files is a handle of. Such a file can be bind-mounted, and
                is the only one of its mount.
        """
        super().__init__(magic, name, INTERNAL)
        self.stands_for = stands_for


# A counter of 32 bits gives the numbers of WRAPPING_INODES (get_next_ino, fs/inode.c), which after
# 2^32 files is where it began. A tmpfs has a counter of its own (shmem_reserve_inode, mm/shmem.c),
# of 64 bits with the option inode64; whether it always had that is not to be seen.

# Rows that code names.
TMPFS = FilesystemType(0x01021994, b"tmpfs", IN_MEMORY, WRAPPING_INODES)
OVERLAY = FilesystemType(
    0x794C7630, b"overlay", LAYERED, MANY_DEVICES, SHARES_DATA, POWER_OF_MOUNTER
)
PROC = FilesystemType(0x9FA0, b"proc", FRESH)
DEVPTS = FilesystemType(0x1CD1, b"devpts", FRESH, POWER_OF_MOUNTER)
BPF = FilesystemType(0xCAFE4A11, b"bpf", FRESH, POWER_OF_MOUNTER, WRAPPING_INODES)
BINFMT_MISC = Keyed(0x42494E4D, b"binfmt_misc", "user namespace", WRAPPING_INODES)
EXT = FilesystemType(0xEF53, b"ext4 ext3 ext2", ON_DEVICE)
BTRFS = FilesystemType(0x9123683E, b"btrfs", ON_DEVICE, MANY_DEVICES, MADE_UP_DEVICE, SHARES_DATA)
HUGETLBFS = FilesystemType(0x958458F6, b"hugetlbfs", NOT_AT_ALL, WRAPPING_INODES)

_ROWS = (
    TMPFS,
    FilesystemType(0x858458F6, b"ramfs", IN_MEMORY, WRAPPING_INODES),
    OVERLAY,
    PROC,
    DEVPTS,
    BPF,
    BINFMT_MISC,
    Keyed(0x62656572, b"sysfs", "network namespace"),
    Keyed(0x19800202, b"mqueue", "IPC namespace", WRAPPING_INODES),
    Keyed(0x63677270, b"cgroup2", "machine", SET_BY_MOUNTING),
    Keyed(0x62656570, b"configfs", "machine", WRAPPING_INODES),
    Keyed(0x64626720, b"debugfs", "machine", SET_BY_MOUNTING, WRAPPING_INODES),
    Keyed(0x65735543, b"fusectl", "machine", WRAPPING_INODES),
    Keyed(0x6165676C, b"pstore", "machine", WRAPPING_INODES),
    Keyed(0x73636673, b"securityfs", "machine", WRAPPING_INODES),
    Keyed(0x74726163, b"tracefs", "machine", SET_BY_MOUNTING, WRAPPING_INODES),
    Keyed(0xDE5E81E4, b"efivarfs", "machine", WRAPPING_INODES),
    EXT,
    FilesystemType(0x58465342, b"xfs", ON_DEVICE, SHARES_DATA),
    BTRFS,
    FilesystemType(0x73717368, b"squashfs", ON_DEVICE, NEVER_WRITTEN),
    FilesystemType(0xE0F5E1E2, b"erofs", ON_DEVICE, NEVER_WRITTEN),
    FilesystemType(0x4D44, b"vfat msdos", ON_DEVICE, VOLATILE_INODES),
    FilesystemType(0x2011BAB0, b"exfat", ON_DEVICE, VOLATILE_INODES),
    FilesystemType(0xF2F52010, b"f2fs", ON_DEVICE),
    FilesystemType(0x9660, b"iso9660", ON_DEVICE, NEVER_WRITTEN),
    FilesystemType(0x15013346, b"udf", ON_DEVICE),
    FilesystemType(0x3434, b"nilfs2", ON_DEVICE),
    FilesystemType(0x3153464A, b"jfs", ON_DEVICE),
    FilesystemType(0x4244, b"hfs", ON_DEVICE),
    FilesystemType(0x482B, b"hfsplus", ON_DEVICE),
    FilesystemType(0x7366746E, b"ntfs3", ON_DEVICE),
    FilesystemType(0x28CD3D45, b"cramfs", ON_DEVICE, NEVER_WRITTEN),
    FilesystemType(0x7275, b"romfs", ON_DEVICE, NEVER_WRITTEN),
    FilesystemType(0x137F, b"minix", ON_DEVICE),
    FilesystemType(0x138F, b"minix", ON_DEVICE),
    FilesystemType(0x2468, b"minix", ON_DEVICE),
    FilesystemType(0x2478, b"minix", ON_DEVICE),
    FilesystemType(0x4D5A, b"minix", ON_DEVICE),
    # bcachefs has no name here, so it is not tried where the kernel does not tell it: not tested.
    FilesystemType(0xCA451A4E, b"", ON_DEVICE, MANY_DEVICES, SHARES_DATA),
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
    FilesystemType(0x6A656A63, b"fakeowner", NOT_AT_ALL),  # of Docker Desktop, not of Linux
)

_BY_MAGIC = {row.magic: row for row in _ROWS}

# A type that is in no row may lie on a block device: from 7.0 on the kernel tells its name.
_OTHER = FilesystemType(0, b"", ON_DEVICE)

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


def rows_with(trait: str) -> list[FilesystemType]:
    """Return the types that have a trait."""
    return [row for row in _ROWS if row.has(trait)]


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
