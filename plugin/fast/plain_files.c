// SPDX-License-Identifier: GPL-2.0-only
/*
 * Records plain files at a dump, as criu_detached/dump/files.py would. A dump of ten thousand files
 * has 11 microseconds for each, and Python needs 14 in CRIU's process. Nothing is decided here: a
 * file that is not plain is left to Python.
 */
#define _GNU_SOURCE
#include "plain_files.h"

#include "kernel/beneath.h"

#include <stdlib.h>
#include <string.h>

#include "file_record.h"
#include "recorded_files.h"

/* --- mounts --- */

struct plain_mount {
	uint32_t mnt_id;
	uint32_t source_mnt_id;
	int root;
	bool compare_owner;
};

static struct plain_mount *mounts;
static size_t nr_mounts;

int plain_mount_add(uint32_t mnt_id, int root, uint32_t source_mnt_id, int compare_owner)
{
	struct plain_mount *grown = realloc(mounts, (nr_mounts + 1) * sizeof(*mounts));

	if (!grown)
		return -1;
	mounts = grown;
	mounts[nr_mounts++] = (struct plain_mount){ mnt_id, source_mnt_id, root, compare_owner };
	return 0;
}

static const struct plain_mount *find_mount(uint32_t mnt_id)
{
	for (size_t i = 0; i < nr_mounts; i++)
		if (mounts[i].mnt_id == mnt_id)
			return &mounts[i];
	return NULL;
}

/* --- records, ready for the record file --- */

static uint8_t *pending;
static size_t pending_size, pending_room;
static unsigned int pending_entries;

static bool make_room(size_t size)
{
	size_t room = pending_room ? 2 * pending_room : 1 << 16;
	uint8_t *grown;

	if (pending_room - pending_size >= size)
		return true;
	grown = realloc(pending, room); /* a path is far shorter than the first room */
	if (!grown)
		return false;
	pending = grown;
	pending_room = room;
	return true;
}

/* There is room: make_room was called. */
static void append_record(const char *path, size_t path_size, const struct file_facts *facts)
{
	const struct file_record record = {
		.mnt_id = facts->mnt_id,
		.ino = facts->ino,
		.dev = facts->dev,
		.mode = facts->mode,
		.size = facts->size,
		.path = path,
		.path_size = path_size,
	};

	pending_size += file_record_write(&record, pending + pending_size);
	pending_entries++;
}

const uint8_t *plain_files_pending(size_t *size, unsigned int *entries)
{
	*size = pending_size;
	*entries = pending_entries;
	return pending;
}

void plain_files_written(void)
{
	pending_size = 0;
	pending_entries = 0;
}

/* --- taking a file --- */

/* The same mount id says that nothing covers it. */
static bool source_shows(const struct plain_mount *mount, const char *path,
			 const struct file_facts *facts)
{
	struct file_facts shown;

	if (facts_beneath(mount->root, path, &shown) || shown.ino != facts->ino ||
	    shown.dev != facts->dev || shown.mnt_id != mount->source_mnt_id)
		return false;
	return !mount->compare_owner || (shown.uid == facts->uid && shown.gid == facts->gid);
}

bool plain_file_take(const char *link, const struct file_facts *facts)
{
	const struct plain_mount *mount = find_mount(facts->mnt_id);
	const struct recorded_file *known;
	const char *path = link + 1;
	size_t path_size = strlen(path);

	if (!mount || !S_ISREG(facts->mode) || facts->nlink != 1 || !*path)
		return false;
	known = recorded_file_find(facts->mnt_id, facts->ino);
	if (known)
		return known->dev == facts->dev && !strcmp(known->path, path);
	if (!source_shows(mount, path, facts) || !make_room(path_size + FILE_RECORD_ROOM) ||
	    recorded_file_add(facts->mnt_id, facts->ino, facts->dev, path))
		return false;
	append_record(path, path_size, facts);
	return true;
}

void plain_files_reset(void)
{
	nr_mounts = 0;
	plain_files_written();
}
