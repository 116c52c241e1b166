/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Which files have a record in the dump that runs: the one place that knows it. The fast path
 * (plain_files.c) and criu_detached/dump/files.py ask here, and add what they record.
 */
#ifndef CRIU_DETACHED_RECORDED_FILES_H
#define CRIU_DETACHED_RECORDED_FILES_H

#include <stddef.h>
#include <stdint.h>

/* A file, which CRIU names by mount and inode. */
struct recorded_file {
	uint64_t ino;
	uint64_t dev; /* st_dev */
	uint32_t mnt_id;
	const char *path; /* in its record: beneath the mount's root */
};

/**
 * recorded_file_add - say that a file has a record
 *
 * Return: 0, or -1 without memory.
 */
int recorded_file_add(uint32_t mnt_id, uint64_t ino, uint64_t dev, const char *path);

/** recorded_file_find - the file with this name, or NULL if it has no record */
const struct recorded_file *recorded_file_find(uint32_t mnt_id, uint64_t ino);

/** recorded_files_reset - drop all: another dump begins */
void recorded_files_reset(void);

#endif
