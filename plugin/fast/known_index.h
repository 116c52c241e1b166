/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What known_files.c opens: the mounts that it was told of, and an index over the File records.
 * known_files.h has the functions that fill it.
 */
#ifndef CRIU_DETACHED_KNOWN_INDEX_H
#define CRIU_DETACHED_KNOWN_INDEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* See known_mount_add. */
struct known_mount {
	uint32_t mnt_id;
	char *key;
	int shared;
	bool keeps_inodes;
};

/* A File record, checked. */
struct known_file {
	const struct known_mount *mount;
	uint64_t ino;
	uint64_t rdev;
	uint64_t size;
	uint32_t mode;
	uint32_t path_size;
	const uint8_t *path; /* in the record file, without an end mark; shorter than PATH_MAX */
};

/** known_file_find - the file with this name, as known_file_open is given it; or NULL */
const struct known_file *known_file_find(const char *name);

/** known_index_count - how many files there are */
size_t known_index_count(void);

/** known_index_reset - forget all mounts and files */
void known_index_reset(void);

#endif
