# SPDX-License-Identifier: GPL-2.0-only
"""Types of filesystem, and how each comes back where no attached mount shows it.

By their magic numbers (linux/magic.h, fs/*/super.c), which statfs(2) tells, with the names that
they are mounted by. What is in none of the tables lies on a block device, or does not come back.
"""

from __future__ import annotations

from criu_detached import kernel

# Made anew with their contents, for they are in memory alone.
IN_MEMORY = {0x01021994: b"tmpfs", 0x858458F6: b"ramfs"}

# Mounted anew over the same layers.
OVERLAYFS_MAGIC = 0x794C7630

# Mounted anew from nothing, which gives a new superblock: what was in them is lost.
BPF_MAGIC = 0xCAFE4A11
FRESH = {kernel.PROC_SUPER_MAGIC: b"proc", kernel.DEVPTS_SUPER_MAGIC: b"devpts", BPF_MAGIC: b"bpf"}

# Mounted again from nothing, which gives the superblock that is there; with what else there is
# one of for each of them.
BINFMT_MAGIC = 0x42494E4D
KEYED = {
    0x62656572: (b"sysfs", "network namespace"),
    0x19800202: (b"mqueue", "IPC namespace"),
    0x63677270: (b"cgroup2", "machine"),
    BINFMT_MAGIC: (b"binfmt_misc", "user namespace"),
    0x62656570: (b"configfs", "machine"),
    0x64626720: (b"debugfs", "machine"),
    0x65735543: (b"fusectl", "machine"),
    0x6165676C: (b"pstore", "machine"),
    0x73636673: (b"securityfs", "machine"),
    0x74726163: (b"tracefs", "machine"),
    0xDE5E81E4: (b"efivarfs", "machine"),
}

# Names of those that come from nothing.
FROM_NOTHING = {*FRESH.values(), *(fs_type for fs_type, _ in KEYED.values())}

# Mounted again from a block device: names that kernels before 7.0 do not tell. Of those with one
# number only the living one is mounted: it has claimed the device.
BTRFS_MAGIC = 0x9123683E
ON_DISK = {
    0xEF53: [b"ext4", b"ext3", b"ext2"],
    0x58465342: [b"xfs"],
    BTRFS_MAGIC: [b"btrfs"],
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

# Of these a new superblock gives its files the power of who mounts it.
OWNED = {OVERLAYFS_MAGIC, kernel.DEVPTS_SUPER_MAGIC, BPF_MAGIC}

# What their files stand for: each file can be bind-mounted, and is the only one of its mount.
HANDLES = {0x6E736673: "a namespace", 0x50494446: "a process"}  # nsfs, pidfs

# Mounted again by their server alone.
SERVED = {
    0x65735546: "FUSE",  # virtiofs as well
    0x6969: "NFS",
    0xFF534D42: "CIFS",
    0xFE534D42: "CIFS",
    0x01021997: "9p",
    0x00C36400: "Ceph",
    0x6B414653: "AFS",
}


def is_hidden(path: bytes) -> bool:
    """Tell the name that a client or server gives to a deleted file until it is closed.

    Those of libfuse (hidden_name, lib/fuse.c), NFS (nfs_sillyrename, fs/nfs/dir.c) and CIFS.
    """
    return path.rpartition(b"/")[2].startswith((b".fuse_hidden", b".nfs0", b".__smb"))
