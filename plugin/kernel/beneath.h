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
#include <unistd.h>

#include "facts.h"
#include "syscalls.h"

#define STAY_BENEATH 0x0f /* NO_XDEV, NO_MAGICLINKS, NO_SYMLINKS, BENEATH */

/** open_beneath - openat2(2), close-on-exec; -1 with errno set */
static inline int open_beneath(int dir, const char *path, int flags)
{
	struct uapi_open_how how = { .flags = (unsigned int)flags | O_CLOEXEC,
				     .resolve = STAY_BENEATH };

	return syscall(NR_openat2, dir, path, &how, sizeof(how));
}

/** facts_beneath - facts_at, of what is beneath; like that without any effect on the file */
static inline int facts_beneath(int dir, const char *path, struct file_facts *facts)
{
	int fd, ret;

	/* A single name leads nowhere else, and saves the open. */
	if (!strchr(path, '/') && strcmp(path, ".."))
		return facts_at(dir, path, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT, facts);
	fd = open_beneath(dir, path, O_PATH | O_NOFOLLOW);
	if (fd < 0)
		return -1;
	ret = facts_of(fd, facts);
	close(fd);
	return ret;
}

#endif
