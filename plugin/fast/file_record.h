/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The record of a file: message File of proto/criu_detached.proto, in an entry of the record file
 * (docs/image-format.md). It is the one record that C writes and reads; criu_detached/images/ does
 * so with all of them.
 */
#ifndef CRIU_DETACHED_FILE_RECORD_H
#define CRIU_DETACHED_FILE_RECORD_H

#include <stddef.h>
#include <stdint.h>

/* Field numbers of File. */
enum file_field {
	FILE_MNT_ID = 1,
	FILE_INO = 2,
	FILE_DEV = 3,
	FILE_MODE = 4,
	FILE_PATH = 5,
	FILE_RDEV = 6,
	FILE_HANDLE = 7,
	FILE_SIZE = 8,
};

/* The field of Entry that holds a File. */
enum { ENTRY_FILE = 3 };

/* Of a File, all but its handle, which only Python needs. */
struct file_record {
	uint64_t ino;
	uint64_t dev;
	uint64_t rdev;
	uint64_t size;
	uint32_t mnt_id;
	uint32_t mode;
	uint32_t path_size;
	const char *path; /* without an end mark, within the entry when it was read from one */
};

/* Bytes that an entry has besides the path, at most. */
#define FILE_RECORD_ROOM 128

/**
 * file_record_write - write a file as an entry
 * @record: the file
 * @entry: where; there must be room for FILE_RECORD_ROOM bytes and the path
 *
 * Return: how many bytes it has.
 */
size_t file_record_write(const struct file_record *record, uint8_t *entry);

/* What is left to read of the entries of a record file. */
struct entries {
	const uint8_t *at, *end;
};

/**
 * file_record_next - read the next entry that holds a file, and all before it
 * @entries: where to begin; afterwards, what is left
 * @record: the file; what its entry does not have is 0 or NULL
 *
 * Entries of other records are passed over. Nothing is read beyond the end.
 *
 * Return: 1, 0 when no file is left, or -1 when an entry is no sound one: it is cut off, or has an
 * unknown field, a field twice or of another type, or a number that its field has no room for.
 */
int file_record_next(struct entries *entries, struct file_record *record);

#endif
