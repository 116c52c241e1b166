// SPDX-License-Identifier: GPL-2.0-only
/*
 * The index over the File records of a restore. It is made in CRIU's process, by
 * criu_detached/restore/restore.py, and tasks have it by their fork. Images are hostile: each
 * step of reading is checked against the end, and what is not sound makes it all unsound.
 */
#define _GNU_SOURCE
#include "known_index.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "known_files.h"

/* --- mounts --- */

static struct known_mount *mounts;
static size_t nr_mounts;

int known_mount_add(uint32_t mnt_id, const char *key, int index, int keeps_inodes)
{
	struct known_mount *grown = realloc(mounts, (nr_mounts + 1) * sizeof(*mounts));

	if (!grown)
		return -1;
	mounts = grown;
	mounts[nr_mounts].mnt_id = mnt_id;
	mounts[nr_mounts].key = key ? strdup(key) : NULL;
	mounts[nr_mounts].shared = index;
	mounts[nr_mounts].keeps_inodes = keeps_inodes;
	if (key && !mounts[nr_mounts].key)
		return -1;
	nr_mounts++;
	return 0;
}

static const struct known_mount *find_mount(uint32_t mnt_id)
{
	for (size_t i = 0; i < nr_mounts; i++)
		if (mounts[i].mnt_id == mnt_id)
			return &mounts[i];
	return NULL;
}

/* --- the index over the record file --- */

static struct known_file *files;
static size_t nr_files;

/* Bytes that are left to read. Every step is checked against the end. */
struct reader {
	const uint8_t *at, *end;
};

/* criu_detached.proto: Entry.file = 3, and the fields of File */
enum { ENTRY_FILE = 3 };
enum {
	FILE_MNT_ID = 1,
	FILE_INO,
	FILE_DEV,
	FILE_MODE,
	FILE_PATH,
	FILE_RDEV,
	FILE_HANDLE,
	FILE_SIZE
};
enum { WIRE_VARINT = 0, WIRE_LENGTH = 2 };

static bool read_varint(struct reader *r, uint64_t *value)
{
	*value = 0;
	for (unsigned int shift = 0; shift < 64 && r->at < r->end; shift += 7) {
		uint8_t byte = *r->at++;

		if (shift == 63 && byte > 1)
			return false;
		*value |= (uint64_t)(byte & 0x7f) << shift;
		if (byte < 0x80)
			return true;
	}
	return false;
}

static bool read_delimited(struct reader *r, struct reader *inside)
{
	uint64_t size;

	if (!read_varint(r, &size) || size > (uint64_t)(r->end - r->at))
		return false;
	inside->at = r->at;
	inside->end = r->at + size;
	r->at += size;
	return true;
}

/* Neither empty nor "." nor "..". */
static bool is_name(const uint8_t *name, size_t size)
{
	return size > 2 || (size && memcmp(name, "..", size));
}

/* "." for the mount's root, else names. */
static bool stays_beneath(const uint8_t *path, size_t size)
{
	const uint8_t *name = path, *end = path + size;

	if (size == 0 || size >= PATH_MAX || memchr(path, '\0', size))
		return false;
	if (size == 1 && *path == '.')
		return true;
	for (;;) {
		const uint8_t *slash = memchr(name, '/', end - name);

		if (!is_name(name, (slash ? slash : end) - name))
			return false;
		if (!slash)
			return true;
		name = slash + 1;
	}
}

/* The fields of a File, each at most once: its numbers, and its path. */
static bool read_fields(struct reader r, uint64_t numbers[FILE_SIZE + 1], struct reader *path)
{
	unsigned int seen = 0;

	while (r.at < r.end) {
		struct reader inside;
		uint64_t tag, field;

		if (!read_varint(&r, &tag))
			return false;
		field = tag >> 3;
		if (field < FILE_MNT_ID || field > FILE_SIZE || seen & 1u << field)
			return false;
		seen |= 1u << field;
		if (field == FILE_PATH || field == FILE_HANDLE) {
			if ((tag & 7) != WIRE_LENGTH || !read_delimited(&r, &inside))
				return false;
			if (field == FILE_PATH)
				*path = inside;
		} else if ((tag & 7) != WIRE_VARINT || !read_varint(&r, &numbers[field])) {
			return false;
		}
	}
	return true;
}

static bool read_file(struct reader r, struct known_file *file)
{
	uint64_t numbers[FILE_SIZE + 1] = { 0 };
	struct reader path = { 0 };

	if (!read_fields(r, numbers, &path) || numbers[FILE_MNT_ID] > UINT32_MAX ||
	    numbers[FILE_MODE] > UINT32_MAX)
		return false;
	*file = (struct known_file){
		.mount = find_mount(numbers[FILE_MNT_ID]),
		.ino = numbers[FILE_INO],
		.rdev = numbers[FILE_RDEV],
		.size = numbers[FILE_SIZE],
		.mode = numbers[FILE_MODE],
		.path = path.at,
		.path_size = path.end - path.at, /* an entry has 32 bits of length */
	};
	return file->mount && path.at && stays_beneath(path.at, file->path_size);
}

static int compare_files(const void *one, const void *other)
{
	const struct known_file *a = one, *b = other;

	if (a->mount->mnt_id != b->mount->mnt_id)
		return a->mount->mnt_id < b->mount->mnt_id ? -1 : 1;
	return a->ino < b->ino ? -1 : a->ino > b->ino;
}

static bool add_file(struct reader r)
{
	struct known_file *grown;

	if ((nr_files & (nr_files - 1)) == 0) { /* a power of two: full */
		grown = realloc(files, (nr_files ? 2 * nr_files : 1) * sizeof(*files));
		if (!grown)
			return false;
		files = grown;
	}
	return read_file(r, &files[nr_files++]);
}

static bool read_entry(struct reader entry)
{
	struct reader inside;
	uint64_t tag;

	if (!read_varint(&entry, &tag))
		return false;
	if (tag != (ENTRY_FILE << 3 | WIRE_LENGTH))
		return true; /* Python reads the others */
	return read_delimited(&entry, &inside) && entry.at == entry.end && add_file(inside);
}

static bool read_entries(struct reader r)
{
	while (r.at < r.end) {
		uint32_t length;

		if (r.end - r.at < 4)
			return false;
		length = r.at[0] | r.at[1] << 8 | r.at[2] << 16 | (uint32_t)r.at[3] << 24;
		r.at += 4;
		if (length > (size_t)(r.end - r.at) ||
		    !read_entry((struct reader){ r.at, r.at + length }))
			return false;
		r.at += length;
	}
	return true;
}

static bool files_differ(void)
{
	if (nr_files)
		qsort(files, nr_files, sizeof(*files), compare_files);
	for (size_t i = 1; i < nr_files; i++)
		if (!compare_files(&files[i - 1], &files[i]))
			return false;
	return true;
}

int known_files_load(const uint8_t *data, size_t size)
{
	nr_files = 0;
	/* The magic numbers come first. */
	if (size >= 8 && read_entries((struct reader){ data + 8, data + size }) && files_differ())
		return (int)nr_files;
	nr_files = 0; /* the last of them may be half read */
	return -1;
}

/* "ile[<mnt_id hex>:<inode hex>]" */
const struct known_file *known_file_find(const char *name)
{
	struct known_mount mount = { 0 };
	struct known_file wanted = { .mount = &mount };
	unsigned long long mnt_id;
	char *end;

	mnt_id = strtoull(name + strlen("ile["), &end, 16);
	if (*end != ':' || mnt_id > UINT32_MAX)
		return NULL;
	mount.mnt_id = mnt_id;
	wanted.ino = strtoull(end + 1, &end, 16);
	if (strcmp(end, "]") || !nr_files)
		return NULL;
	return bsearch(&wanted, files, nr_files, sizeof(*files), compare_files);
}

size_t known_index_count(void)
{
	return nr_files;
}

void known_index_reset(void)
{
	for (size_t i = 0; i < nr_mounts; i++)
		free(mounts[i].key);
	nr_files = nr_mounts = 0;
}
