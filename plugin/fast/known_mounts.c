// SPDX-License-Identifier: GPL-2.0-only
/* The mounts of a restore, and how a task gets at the tree of one. */
#define _GNU_SOURCE
#include "known_mounts.h"

#include <stdlib.h>
#include <string.h>

#include "kernel/shared.h"

static struct known_mount *mounts;
static size_t nr_mounts;

int known_mount_add(uint32_t mnt_id, const char *key, int shared, int keeps_inodes)
{
	struct known_mount *grown = realloc(mounts, (nr_mounts + 1) * sizeof(*mounts));
	char *copy = NULL;

	if (!grown)
		return -1;
	mounts = grown;
	if (key && !(copy = strdup(key)))
		return -1;
	mounts[nr_mounts++] = (struct known_mount){ mnt_id, copy, shared, keeps_inodes };
	return 0;
}

const struct known_mount *known_mount_find(uint32_t mnt_id)
{
	for (size_t i = 0; i < nr_mounts; i++)
		if (mounts[i].mnt_id == mnt_id)
			return &mounts[i];
	return NULL;
}

int known_mount_tree(const struct known_mount *mount, const struct fd_sources *criu)
{
	int number;

	if (mount->key)
		return criu->inherit_fd_get(mount->key);
	number = shared_get(mount->shared);
	return number < 0 ? -1 : criu->fdstore_get(number >> 1);
}

bool known_mount_keeps_inodes(const struct known_mount *mount)
{
	return mount->key ? mount->keeps_inodes : shared_get(mount->shared) & 1;
}

void known_mounts_reset(void)
{
	for (size_t i = 0; i < nr_mounts; i++)
		free(mounts[i].key);
	nr_mounts = 0;
}
