// SPDX-License-Identifier: GPL-2.0-only
/* The list of deleted files that are left to CRIU; Python compares its own with them. */
#define _GNU_SOURCE
#include "dump_deleted.h"

#include <stdlib.h>
#include <string.h>

static struct file_facts *files;
static size_t nr_files;

/* A link count may be out of date where a server keeps the files. */
static bool is_deleted(const char *link, const struct file_facts *facts)
{
	static const char mark[] = " (deleted)";
	size_t size = strlen(link), end = sizeof(mark) - 1;

	return !facts->nlink || (size > end && !strcmp(link + size - end, mark));
}

int deleted_file_left(const char *link, const struct file_facts *facts)
{
	struct file_facts *grown;

	if (!is_deleted(link, facts))
		return 0;
	grown = realloc(files, (nr_files + 1) * sizeof(*files));
	if (!grown)
		return -1;
	files = grown;
	files[nr_files++] = *facts;
	return 0;
}

const struct file_facts *deleted_files_left(size_t *count)
{
	*count = nr_files;
	return files;
}

void deleted_files_reset(void)
{
	free(files);
	files = NULL;
	nr_files = 0;
}
