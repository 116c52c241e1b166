/* SPDX-License-Identifier: GPL-2.0-only */
/* The mounts of a restore, which known_mount_add (known_files.h) adds. */
#ifndef CRIU_DETACHED_KNOWN_MOUNTS_H
#define CRIU_DETACHED_KNOWN_MOUNTS_H

#include "known_files.h"

/* See known_mount_add. */
struct known_mount {
	uint32_t mnt_id;
	char *key;
	int shared;
	bool keeps_inodes;
};

/** known_mount_find - the mount with this id, or NULL */
const struct known_mount *known_mount_find(uint32_t mnt_id);

/** known_mount_tree - a new fd of a mount's tree, or -1 when it is not realised yet */
int known_mount_tree(const struct known_mount *mount, const struct fd_sources *criu);

/** known_mount_keeps_inodes - whether a realised mount shows the inode numbers of the dump */
bool known_mount_keeps_inodes(const struct known_mount *mount);

/** known_mounts_reset - drop all: another restore begins */
void known_mounts_reset(void);

#endif
