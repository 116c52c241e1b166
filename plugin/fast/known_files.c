// SPDX-License-Identifier: GPL-2.0-only
/*
 * Opens a file of the records in a restored task, if it is exactly as recorded. A restore of ten
 * thousand files has 6 microseconds for each, which Python does not fit in. Nothing is decided
 * here: any other file is left to criu_detached/restore/files.py, which takes the same steps and
 * tells errors apart.
 */
#define _GNU_SOURCE
#include "known_files.h"

#include "kernel/beneath.h"

#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

#include "cached_fds.h"
#include "known_index.h"

/* As few files as make it worth the while to keep fds. */
#define MANY_FILES 64

static bool may_keep;

void known_files_may_keep(bool allowed)
{
	may_keep = allowed && known_index_count() >= MANY_FILES;
}

void known_files_drop_cached_fds(void)
{
	cached_fds_drop();
}

/* A file that is to be opened. */
struct wanted {
	const struct file_record *record;
	const struct known_mount *mount;
	int flags;
};

static bool is_it(const struct wanted *wanted, const struct file_facts *found)
{
	const struct file_record *record = wanted->record;

	if (found->mode != record->mode || found->rdev != record->rdev)
		return false;
	if (S_ISREG(record->mode) && found->size != record->size)
		return false;
	return found->ino == record->ino || !known_mount_keeps_inodes(wanted->mount);
}

/*
 * Look first, for opening a device or a FIFO that someone put in the file's place may
 * have an effect; then see that what was looked at is what was opened.
 */
static int open_in(int dir, const char *name, const struct wanted *wanted, uint32_t mnt_id)
{
	struct file_facts before, after;
	int fd;

	if (facts_beneath(dir, name, &before) || !is_it(wanted, &before))
		return -1;
	if (mnt_id && before.mnt_id != mnt_id)
		return -1; /* CRIU took the number of a cached fd for something else */
	fd = open_beneath(dir, name, wanted->flags);
	if (fd < 0)
		return -1;
	if (!facts_of(fd, &after) && same_file(&after, &before) && is_it(wanted, &after))
		return fd;
	close(fd);
	return -1;
}

static int open_in_cached(int tree, const char *path, const struct wanted *wanted,
			  const struct fd_sources *criu)
{
	const char *slash = strrchr(path, '/');
	int dir = slash ? cached_dir(wanted->record->path, slash - path, criu) : -1;

	return dir < 0 ? open_in(tree, path, wanted, cached_mnt_id())
		       : open_in(dir, slash + 1, wanted, cached_mnt_id());
}

static int open_wanted(const char *path, const struct wanted *wanted, const struct fd_sources *criu)
{
	int tree = may_keep ? cached_tree(wanted->mount, criu) : -1, fd;

	if (tree >= 0)
		return open_in_cached(tree, path, wanted, criu);
	tree = known_mount_tree(wanted->mount, criu);
	if (tree < 0)
		return -1;
	fd = open_in(tree, path, wanted, 0);
	close(tree);
	return fd;
}

/* A mount of one file has no name beneath its root, and the fd of a tree is not opened. */
static bool has_way(const struct file_record *record, int flags)
{
	bool is_root = record->path_size == 1 && *record->path == '.';

	return !is_root || (S_ISDIR(record->mode) && !(flags & O_PATH));
}

int known_file_open(const char *name, int flags, const struct fd_sources *criu)
{
	const struct file_record *record = known_file_find(name);
	struct wanted wanted = { record, NULL, flags };
	char path[PATH_MAX];

	/* No open file has these flags; Python says so. */
	if (flags & (O_CREAT | O_EXCL | O_TRUNC | (O_TMPFILE & ~O_DIRECTORY)))
		return -1;
	if (!record || !has_way(record, flags))
		return -1;
	wanted.mount = known_mount_find(record->mnt_id);
	memcpy(path, record->path, record->path_size);
	path[record->path_size] = '\0';
	return open_wanted(path, &wanted, criu);
}

void known_files_reset(void)
{
	known_mounts_reset();
	known_index_reset();
	cached_fds_reset();
}
