// SPDX-License-Identifier: GPL-2.0-only
/*
 * The fast path of a restore: in a task, it opens those files of the records that are plain, at
 * each openat of a key (restore.c, start_python.c). A restore of ten thousand files has 6
 * microseconds for each, which Python does not fit in. It decides nothing: whatever is not
 * exactly as recorded is left to criu_detached/restore/files.py, which does the same steps and
 * tells errors apart.
 */
#define _GNU_SOURCE
#include "known_files.h"

#include "kernel/beneath.h"

#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

#include "kernel/shared.h"
#include "known_index.h"

/* --- trees of mounts, and what is kept of one from file to file --- */

static int tree_fd(const struct known_mount *mount, const struct fd_sources *criu)
{
	int id;

	if (mount->key)
		return criu->inherit_fd_get(mount->key);
	id = shared_get(mount->shared);
	return id < 0 ? -1 : criu->fdstore_get(id >> 1);
}

/*
 * Fetching the tree fd costs more than opening a file, so where there are many files one
 * tree fd is kept from file to file until known_files_drop_cached_fds; and where they share a
 * directory, its fd too, for the way there takes as long as the rest. They must be in
 * nobody's way: their numbers are above those that the task will have and above CRIU's
 * service fds, which end at a multiple of 128 (choose_service_fd_base, criu/servicefd.c).
 */
#define MANY_FILES 64

static struct {
	const struct known_mount *mount; /* NULL: nothing is kept */
	pid_t pid;			 /* a forked task does not have it */
	int tree;
	uint32_t id;		 /* the mount's, to know the fds again */
	const uint8_t *dir_path; /* in the record file: the directory of the last file */
	size_t dir_size;
	int dir; /* its fd; -1 before a second file is in it */
} kept;

static bool may_keep;

void known_files_may_keep(bool allowed)
{
	may_keep = allowed && known_index_count() >= MANY_FILES;
}

/* 0 when the fd is not open. */
static uint32_t mount_id_of(int fd)
{
	struct file_facts facts;

	return facts_of(fd, &facts) ? 0 : facts.mnt_id;
}

static void close_kept(int fd)
{
	if (fd >= 0 && mount_id_of(fd) == kept.id)
		close(fd);
}

void known_files_drop_cached_fds(void)
{
	if (kept.mount && kept.pid == getpid()) {
		close_kept(kept.tree);
		close_kept(kept.dir);
	}
	kept.mount = NULL;
}

/* The fd where it is in nobody's way. */
static int out_of_the_way(int fd, const struct fd_sources *criu)
{
	int high = fcntl(fd, F_DUPFD_CLOEXEC, (criu->image_dir() | 127) + 1);

	close(fd);
	return high;
}

static bool keep_tree(const struct known_mount *mount, const struct fd_sources *criu)
{
	int tree;

	if (kept.mount == mount && kept.pid == getpid())
		return true;
	known_files_drop_cached_fds();
	tree = tree_fd(mount, criu);
	if (tree >= 0)
		tree = out_of_the_way(tree, criu);
	if (tree < 0)
		return false;
	kept.mount = mount;
	kept.pid = getpid();
	kept.tree = tree;
	kept.id = mount_id_of(tree);
	kept.dir_path = NULL;
	kept.dir = -1;
	return true;
}

/* The fd of the directory that a path ends in after so many bytes; -1: go by the whole path. */
static int kept_dir(const uint8_t *path, size_t size, const struct fd_sources *criu)
{
	char text[PATH_MAX];

	if (!kept.dir_path || size != kept.dir_size || memcmp(path, kept.dir_path, size)) {
		close_kept(kept.dir);
		kept.dir_path = path;
		kept.dir_size = size;
		kept.dir = -1;
	} else if (kept.dir < 0) {
		memcpy(text, path, size);
		text[size] = '\0';
		kept.dir = open_beneath(kept.tree, text, O_PATH | O_DIRECTORY);
		if (kept.dir >= 0)
			kept.dir = out_of_the_way(kept.dir, criu);
	}
	return kept.dir;
}

/* --- opening --- */

/* For a mount that a task realised, it said so in the lowest bit (known_files.h). */
static bool keeps_inodes(const struct known_mount *mount)
{
	return mount->key ? mount->keeps_inodes : shared_get(mount->shared) & 1;
}

static bool as_recorded(const struct known_file *file, const struct file_facts *found)
{
	return found->mode == file->mode && (!S_ISREG(file->mode) || found->size == file->size) &&
	       found->rdev == file->rdev && (!keeps_inodes(file->mount) || found->ino == file->ino);
}

/*
 * Look first, for opening a device or a FIFO that someone put in the file's place may
 * have an effect; then see that what was looked at is what was opened.
 */
static int open_in(int dir, const char *name, const struct known_file *file, int flags,
		   uint32_t mount_id)
{
	struct file_facts before, after;
	int fd;

	if (facts_beneath(dir, name, &before) || !as_recorded(file, &before))
		return -1;
	if (mount_id && before.mnt_id != mount_id)
		return -1; /* CRIU took the number of a kept fd for something else */
	fd = open_beneath(dir, name, flags);
	if (fd < 0)
		return -1;
	if (!facts_of(fd, &after) && same_file(&after, &before) && as_recorded(file, &after))
		return fd;
	close(fd);
	return -1;
}

static int open_in_kept(const struct known_file *file, const char *path, int flags,
			const struct fd_sources *criu)
{
	const char *slash = strrchr(path, '/');
	int dir = slash ? kept_dir(file->path, slash - path, criu) : -1;

	return dir < 0 ? open_in(kept.tree, path, file, flags, kept.id)
		       : open_in(dir, slash + 1, file, flags, kept.id);
}

static bool is_root(const struct known_file *file)
{
	return file->path_size == 1 && *file->path == '.';
}

int known_file_open(const char *name, int flags, const struct fd_sources *criu)
{
	const struct known_file *file = known_file_find(name);
	char path[PATH_MAX];
	int tree, fd;

	/* No open file has these flags; Python says so. */
	if (flags & (O_CREAT | O_EXCL | O_TRUNC | (O_TMPFILE & ~O_DIRECTORY)))
		return -1;
	/* A mount of one file has no name beneath its root, and the fd of a tree is not opened. */
	if (!file || (is_root(file) && (!S_ISDIR(file->mode) || flags & O_PATH)))
		return -1;
	memcpy(path, file->path, file->path_size);
	path[file->path_size] = '\0';
	if (may_keep && keep_tree(file->mount, criu))
		return open_in_kept(file, path, flags, criu);
	tree = tree_fd(file->mount, criu);
	if (tree < 0)
		return -1;
	fd = open_in(tree, path, file, flags, 0);
	close(tree);
	return fd;
}

void known_files_reset(void)
{
	known_index_reset();
	kept.mount = NULL;
}
