// SPDX-License-Identifier: GPL-2.0-only
/* The files of a dump that have a record: a hash table with open addressing. */
#include "recorded_files.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

static struct recorded_file *table;
static size_t table_size, nr_files; /* the size is a power of two, or 0 */

static struct recorded_file *slot_of(struct recorded_file *in, size_t size, uint32_t mnt_id,
				     uint64_t ino)
{
	/* The upper half: inode numbers may be alike in their lowest bits. */
	size_t at = ((ino * 0x9e3779b97f4a7c15ULL >> 32) ^ mnt_id) & (size - 1);

	while (in[at].path && (in[at].ino != ino || in[at].mnt_id != mnt_id))
		at = (at + 1) & (size - 1);
	return &in[at];
}

static bool grow_table(void)
{
	size_t size = table_size ? 2 * table_size : 256;
	struct recorded_file *grown = calloc(size, sizeof(*grown));

	if (!grown)
		return false;
	for (size_t i = 0; i < table_size; i++)
		if (table[i].path)
			*slot_of(grown, size, table[i].mnt_id, table[i].ino) = table[i];
	free(table);
	table = grown;
	table_size = size;
	return true;
}

const struct recorded_file *recorded_file_find(uint32_t mnt_id, uint64_t ino)
{
	struct recorded_file *slot;

	if (!table_size)
		return NULL;
	slot = slot_of(table, table_size, mnt_id, ino);
	return slot->path ? slot : NULL;
}

int recorded_file_add(uint32_t mnt_id, uint64_t ino, uint64_t dev, const char *path)
{
	struct recorded_file *slot;
	char *copy;

	if (2 * nr_files >= table_size && !grow_table())
		return -1;
	copy = strdup(path);
	if (!copy)
		return -1;
	slot = slot_of(table, table_size, mnt_id, ino);
	if (!slot->path)
		nr_files++;
	free((void *)slot->path);
	*slot = (struct recorded_file){ ino, dev, mnt_id, copy };
	return 0;
}

void recorded_files_reset(void)
{
	for (size_t i = 0; i < table_size; i++)
		free((void *)table[i].path);
	free(table);
	table = NULL;
	table_size = nr_files = 0;
}
