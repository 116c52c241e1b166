// SPDX-License-Identifier: GPL-2.0-only
/*
 * The files of a restore, by the names that CRIU opens them by. The index is made in CRIU's
 * process, and tasks have it by their fork. Images are hostile: one record that is not sound makes
 * all unsound.
 */
#define _GNU_SOURCE
#include "known_index.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "known_mounts.h"

static struct file_record *files; /* sorted by their names when all are read */
static size_t nr_files;

/* Neither empty nor "." nor "..". */
static bool is_name(const char *name, size_t size)
{
	return size > 2 || (size && memcmp(name, "..", size));
}

/* "." for the mount's root, else names. */
static bool stays_beneath(const char *path, size_t size)
{
	const char *name = path, *end = path + size;

	if (size == 0 || size >= PATH_MAX || memchr(path, '\0', size))
		return false;
	if (size == 1 && *path == '.')
		return true;
	for (;;) {
		const char *slash = memchr(name, '/', end - name);

		if (!is_name(name, (slash ? slash : end) - name))
			return false;
		if (!slash)
			return true;
		name = slash + 1;
	}
}

static bool is_sound(const struct file_record *file)
{
	return known_mount_find(file->mnt_id) && stays_beneath(file->path, file->path_size);
}

static bool make_room(void)
{
	struct file_record *grown;

	if (nr_files & (nr_files - 1))
		return true; /* the room is a power of two */
	grown = realloc(files, (nr_files ? 2 * nr_files : 1) * sizeof(*files));
	if (!grown)
		return false;
	files = grown;
	return true;
}

static bool read_files(struct entries entries)
{
	while (make_room()) {
		int found = file_record_next(&entries, &files[nr_files]);

		if (found <= 0)
			return found == 0;
		if (!is_sound(&files[nr_files]))
			return false;
		nr_files++;
	}
	return false;
}

static int compare_names(const void *one, const void *other)
{
	const struct file_record *a = one, *b = other;

	if (a->mnt_id != b->mnt_id)
		return a->mnt_id < b->mnt_id ? -1 : 1;
	return a->ino < b->ino ? -1 : a->ino > b->ino;
}

static bool are_sorted(void)
{
	for (size_t i = 1; i < nr_files; i++)
		if (compare_names(&files[i - 1], &files[i]) >= 0)
			return false;
	return true;
}

/* Files that were made one after the other are often opened and dumped in that order, too. */
static bool sort_files(void)
{
	if (!are_sorted())
		qsort(files, nr_files, sizeof(*files), compare_names);
	return are_sorted(); /* not so if a name is there twice */
}

int known_files_load(const uint8_t *data, size_t size)
{
	nr_files = 0;
	/* The magic numbers come first. */
	if (size >= 8 && read_files((struct entries){ data + 8, data + size }) && sort_files())
		return (int)nr_files;
	nr_files = 0;
	return -1;
}

/* "ile[<mnt_id hex>:<inode hex>]" */
const struct file_record *known_file_find(const char *name)
{
	struct file_record wanted = { 0 };
	unsigned long long mnt_id;
	char *end;

	mnt_id = strtoull(name + strlen("ile["), &end, 16);
	if (*end != ':' || mnt_id > UINT32_MAX)
		return NULL;
	wanted.mnt_id = mnt_id;
	wanted.ino = strtoull(end + 1, &end, 16);
	if (strcmp(end, "]") || !nr_files)
		return NULL;
	return bsearch(&wanted, files, nr_files, sizeof(*files), compare_names);
}

size_t known_index_count(void)
{
	return nr_files;
}

void known_index_reset(void)
{
	nr_files = 0;
}
