// SPDX-License-Identifier: GPL-2.0-only
/*
 * Reaching a file beneath a directory that others may change at any moment: no symlink is
 * followed, no mount entered, and nothing above it reached.
 */
#ifndef CRIU_DETACHED_BENEATH_H
#define CRIU_DETACHED_BENEATH_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* linux/openat2.h: struct open_how, OPEN_HOW_SIZE_VER0 */
struct open_how_ver0_ {
	uint64_t flags, mode, resolve;
};
#define STAY_BENEATH 0x0f /* NO_XDEV, NO_MAGICLINKS, NO_SYMLINKS, BENEATH */
#define NR_openat2 437

static inline int open_beneath(int dir, const char *path, int flags)
{
	struct open_how_ver0_ how = { .flags = (unsigned int)flags | O_CLOEXEC,
				      .resolve = STAY_BENEATH };

	return syscall(NR_openat2, dir, path, &how, sizeof(how));
}

/* As statx(2), and like that without any effect on the file. */
static inline int statx_beneath(int dir, const char *path, unsigned int mask, struct statx *stx)
{
	int fd, ret;

	/* A single name leads nowhere else, and saves the open. */
	if (!strchr(path, '/') && strcmp(path, ".."))
		return statx(dir, path, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT, mask, stx);
	fd = open_beneath(dir, path, O_PATH | O_NOFOLLOW);
	if (fd < 0)
		return -1;
	ret = statx(fd, "", AT_EMPTY_PATH, mask, stx);
	close(fd);
	return ret;
}

#endif
