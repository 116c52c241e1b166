// SPDX-License-Identifier: GPL-2.0-only
/*
 * The fast path of a dump: records of plain files, as criu_detached/dump/files.py makes them.
 * A dump of ten thousand files has 11 microseconds for each, and Python needs 14 in
 * CRIU's process. It decides nothing: what is not plain is left to Python.
 */
#define _GNU_SOURCE
#include "plain_files.h"

#include "kernel/beneath.h"

#include <stdlib.h>
#include <string.h>

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

/* --- records: an Entry with a File, see criu_detached.proto and docs/image-format.md --- */

static uint8_t *pending;
static size_t pending_size, pending_room;
static unsigned int pending_entries;

/* More than the numbers of a record take. */
#define OVERHEAD 128

static uint8_t *put_varint(uint8_t *at, uint64_t value)
{
	for (; value >= 0x80; value >>= 7)
		*at++ = value | 0x80;
	*at++ = value;
	return at;
}

static uint8_t *put_number(uint8_t *at, unsigned int field, uint64_t value)
{
	if (!value)
		return at; /* proto3 leaves defaults out */
	return put_varint(put_varint(at, field << 3), value);
}

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
static void append_record(const char *path, const struct file_facts *facts)
{
	size_t length = strlen(path);
	uint8_t file[OVERHEAD], *end = file, *entry, *at;
	uint32_t size;

	end = put_number(end, 1, facts->mnt_id);
	end = put_number(end, 2, facts->ino);
	end = put_number(end, 3, facts->dev);
	end = put_number(end, 4, facts->mode);
	end = put_number(end, 8, facts->size);
	end = put_varint(put_varint(end, 5 << 3 | 2), length);
	entry = pending + pending_size + sizeof(size);
	at = put_varint(put_varint(entry, 3 << 3 | 2), end - file + length);
	at = mempcpy(at, file, end - file);
	at = mempcpy(at, path, length);
	size = at - entry;
	for (unsigned int i = 0; i < sizeof(size); i++)
		pending[pending_size + i] = size >> 8 * i;
	pending_size += sizeof(size) + size;
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

	if (!mount || !S_ISREG(facts->mode) || facts->nlink != 1 || !*path)
		return false;
	known = recorded_file_find(facts->mnt_id, facts->ino);
	if (known)
		return known->dev == facts->dev && !strcmp(known->path, path);
	if (!source_shows(mount, path, facts) || !make_room(strlen(path) + 2 * OVERHEAD) ||
	    recorded_file_add(facts->mnt_id, facts->ino, facts->dev, path))
		return false;
	append_record(path, facts);
	return true;
}

void plain_files_reset(void)
{
	nr_mounts = 0;
	plain_files_written();
}
