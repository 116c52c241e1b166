/* SPDX-License-Identifier: GPL-2.0-only */
/* Reading the facts of a file (file_facts.h): the one place where C asks statx(2). */
#ifndef CRIU_DETACHED_FACTS_H
#define CRIU_DETACHED_FACTS_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "file_facts.h"

/** facts_in - the facts that statx(2) has told */
static inline struct file_facts facts_in(const struct statx *stx)
{
	return (struct file_facts){
		.dev = makedev(stx->stx_dev_major, stx->stx_dev_minor),
		.ino = stx->stx_ino,
		.rdev = makedev(stx->stx_rdev_major, stx->stx_rdev_minor),
		.size = S_ISREG(stx->stx_mode) ? stx->stx_size : 0,
		.mnt_id = stx->stx_mnt_id,
		.mode = stx->stx_mode,
		.nlink = stx->stx_nlink,
		.uid = stx->stx_uid,
		.gid = stx->stx_gid,
		.attributes = stx->stx_attributes,
	};
}

/**
 * facts_at - the facts of a path
 * @flags: of statx(2)
 *
 * Return: 0, or -1 with errno set: EOPNOTSUPP when the kernel tells no mount id (Linux < 5.8).
 */
static inline int facts_at(int dir, const char *path, int flags, struct file_facts *facts)
{
	struct statx stx;

	if (statx(dir, path, flags, STATX_BASIC_STATS | STATX_MNT_ID, &stx))
		return -1;
	if (!(stx.stx_mask & STATX_MNT_ID)) {
		errno = EOPNOTSUPP;
		return -1;
	}
	*facts = facts_in(&stx);
	return 0;
}

/** facts_of - likewise, of an open file */
static inline int facts_of(int fd, struct file_facts *facts)
{
	return facts_at(fd, "", AT_EMPTY_PATH, facts);
}

/** same_file - one inode, seen by one mount */
static inline bool same_file(const struct file_facts *one, const struct file_facts *other)
{
	return one->ino == other->ino && one->dev == other->dev && one->mnt_id == other->mnt_id;
}

#endif
