// SPDX-License-Identifier: GPL-2.0-only
/*
 * Keeps the tree fd of a mount, which costs more to fetch than a file to open, for the task's next
 * file; and where two files in turn share a directory, its fd too, for the way there takes as long
 * as the rest.
 *
 * The fds must be in nobody's way: their numbers are above those that the task will have and above
 * CRIU's service fds, which end at a multiple of 128 (choose_service_fd_base, criu/servicefd.c).
 * CRIU may take such a number for something else all the same; then that is not closed.
 */
#define _GNU_SOURCE
#include "cached_fds.h"

#include "kernel/beneath.h"

#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

struct cached_fd {
	int fd;			  /* -1: none */
	struct file_facts opened; /* what it is an fd of */
};

static const struct cached_fd none = { .fd = -1 };

static struct {
	const struct known_mount *mount; /* NULL: nothing is kept */
	pid_t pid;			 /* a forked task does not have it */
	struct cached_fd tree;
	const char *dir_path; /* in the record file: the directory of the last file */
	size_t dir_size;
	struct cached_fd dir; /* none before a second file is in it */
} cache;

static void drop(struct cached_fd *cached)
{
	struct file_facts found;

	if (cached->fd >= 0 && !facts_of(cached->fd, &found) && same_file(&found, &cached->opened))
		close(cached->fd);
	*cached = none;
}

void cached_fds_drop(void)
{
	if (cache.mount && cache.pid == getpid()) {
		drop(&cache.tree);
		drop(&cache.dir);
	}
	cache.mount = NULL;
}

void cached_fds_reset(void)
{
	cache.mount = NULL;
}

/* Keep an fd, moved to where it is in nobody's way. */
static struct cached_fd keep(int fd, const struct fd_sources *criu)
{
	struct cached_fd cached;

	if (fd < 0)
		return none;
	cached.fd = fcntl(fd, F_DUPFD_CLOEXEC, (criu->image_dir() | 127) + 1);
	close(fd);
	if (cached.fd < 0)
		return none;
	if (facts_of(cached.fd, &cached.opened)) {
		close(cached.fd);
		return none;
	}
	return cached;
}

int cached_tree(const struct known_mount *mount, const struct fd_sources *criu)
{
	if (cache.mount == mount && cache.pid == getpid())
		return cache.tree.fd;
	cached_fds_drop();
	cache.tree = keep(known_mount_tree(mount, criu), criu);
	if (cache.tree.fd < 0)
		return -1;
	cache.mount = mount;
	cache.pid = getpid();
	cache.dir = none;
	cache.dir_path = NULL;
	return cache.tree.fd;
}

uint32_t cached_mnt_id(void)
{
	return cache.tree.opened.mnt_id;
}

static int open_dir(const char *path, size_t size)
{
	char text[PATH_MAX];

	memcpy(text, path, size);
	text[size] = '\0';
	return open_beneath(cache.tree.fd, text, O_PATH | O_DIRECTORY);
}

int cached_dir(const char *path, size_t size, const struct fd_sources *criu)
{
	if (!cache.dir_path || size != cache.dir_size || memcmp(path, cache.dir_path, size)) {
		drop(&cache.dir);
		cache.dir_path = path;
		cache.dir_size = size;
	} else if (cache.dir.fd < 0) {
		cache.dir = keep(open_dir(path, size), criu);
	}
	return cache.dir.fd;
}
