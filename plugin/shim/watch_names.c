// SPDX-License-Identifier: GPL-2.0-only
/* The names of watched inodes, and what is said of one; the search: dump_watches.c. */
#define _GNU_SOURCE
#include "watch_names.h"

#include <stdlib.h>
#include <string.h>

static struct watch_name {
	uint64_t dev, ino;
	char *name;
} *names;
static size_t nr_names;

void watch_names_reset(void)
{
	while (nr_names)
		free(names[--nr_names].name);
}

int watch_name_note(uint64_t dev, uint64_t ino, const char *name)
{
	struct watch_name *grown = realloc(names, (nr_names + 1) * sizeof(*names));
	char *copy = strdup(name);

	if (grown)
		names = grown;
	if (!grown || !copy) {
		free(copy);
		return -1;
	}
	names[nr_names++] = (struct watch_name){ dev, ino, copy };
	return 0;
}

bool watch_name_stat(const char *name, struct stat *st)
{
	if (strncmp(name, "ile[", 4))
		return false;
	/* CRIU drops what a pre-dump has noted if it is not this inode (irmap_revalidate). */
	memset(st, 0, sizeof(*st));
	for (size_t i = 0; i < nr_names; i++) {
		if (!strcmp(names[i].name, name)) {
			st->st_mode = S_IFREG; /* there is nothing in it to look through */
			st->st_dev = names[i].dev;
			st->st_ino = names[i].ino;
			break;
		}
	}
	return true;
}
