// SPDX-License-Identifier: GPL-2.0-only
/*
 * Writes and reads the record of a file, in protobuf's wire format
 * (https://protobuf.dev/programming-guides/encoding/).
 */
#define _GNU_SOURCE
#include "file_record.h"

#include <stdbool.h>
#include <string.h>

enum { WIRE_VARINT = 0, WIRE_LENGTH = 2 };

/* Before each entry, its size in little-endian. */
#define ENTRY_HEAD 4

/* --- writing --- */

static uint8_t *put_varint(uint8_t *at, uint64_t value)
{
	for (; value >= 0x80; value >>= 7)
		*at++ = value | 0x80;
	*at++ = value;
	return at;
}

static uint8_t *put_number(uint8_t *at, enum file_field field, uint64_t value)
{
	if (!value)
		return at; /* proto3 leaves defaults out */
	return put_varint(put_varint(at, field << 3 | WIRE_VARINT), value);
}

/* A field of so many bytes, which are to follow. */
static uint8_t *put_length(uint8_t *at, unsigned int field, size_t size)
{
	return put_varint(put_varint(at, field << 3 | WIRE_LENGTH), size);
}

static uint8_t *put_numbers(uint8_t *at, const struct file_record *record)
{
	at = put_number(at, FILE_MNT_ID, record->mnt_id);
	at = put_number(at, FILE_INO, record->ino);
	at = put_number(at, FILE_DEV, record->dev);
	at = put_number(at, FILE_MODE, record->mode);
	at = put_number(at, FILE_RDEV, record->rdev);
	return put_number(at, FILE_SIZE, record->size);
}

size_t file_record_write(const struct file_record *record, uint8_t *entry)
{
	uint8_t numbers[FILE_RECORD_ROOM], *end = put_numbers(numbers, record), *at;
	size_t size;

	if (record->path_size)
		end = put_length(end, FILE_PATH, record->path_size);
	at = put_length(entry + ENTRY_HEAD, ENTRY_FILE, end - numbers + record->path_size);
	at = mempcpy(at, numbers, end - numbers);
	at = mempcpy(at, record->path, record->path_size);
	size = at - entry;
	for (unsigned int i = 0; i < ENTRY_HEAD; i++)
		entry[i] = (size - ENTRY_HEAD) >> 8 * i;
	return size;
}

/* --- reading: every step is checked against the end --- */

static bool get_varint(struct entries *in, uint64_t *value)
{
	*value = 0;
	for (unsigned int shift = 0; shift < 64 && in->at < in->end; shift += 7) {
		uint8_t byte = *in->at++;

		if (shift == 63 && byte > 1)
			return false;
		*value |= (uint64_t)(byte & 0x7f) << shift;
		if (byte < 0x80)
			return true;
	}
	return false;
}

/* Take so many bytes. */
static bool get_bytes(struct entries *in, uint64_t size, struct entries *bytes)
{
	if (size > (uint64_t)(in->end - in->at))
		return false;
	bytes->at = in->at;
	bytes->end = in->at += size;
	return true;
}

static bool get_length(struct entries *in, struct entries *bytes)
{
	uint64_t size;

	return get_varint(in, &size) && get_bytes(in, size, bytes);
}

/* The fields of a File, each at most once: its numbers, and its path. */
static bool get_fields(struct entries in, uint64_t numbers[FILE_SIZE + 1], struct entries *path)
{
	unsigned int seen = 0;

	while (in.at < in.end) {
		struct entries bytes;
		uint64_t tag, field;

		if (!get_varint(&in, &tag))
			return false;
		field = tag >> 3;
		if (field < FILE_MNT_ID || field > FILE_SIZE || seen & 1u << field)
			return false;
		seen |= 1u << field;
		if (field == FILE_PATH || field == FILE_HANDLE) {
			if ((tag & 7) != WIRE_LENGTH || !get_length(&in, &bytes))
				return false;
			if (field == FILE_PATH)
				*path = bytes;
		} else if ((tag & 7) != WIRE_VARINT || !get_varint(&in, &numbers[field])) {
			return false;
		}
	}
	return true;
}

static bool get_file(struct entries in, struct file_record *record)
{
	uint64_t numbers[FILE_SIZE + 1] = { 0 };
	struct entries path = { 0 };

	if (!get_fields(in, numbers, &path) || numbers[FILE_MNT_ID] > UINT32_MAX ||
	    numbers[FILE_MODE] > UINT32_MAX)
		return false;
	*record = (struct file_record){
		.ino = numbers[FILE_INO],
		.dev = numbers[FILE_DEV],
		.rdev = numbers[FILE_RDEV],
		.size = numbers[FILE_SIZE],
		.mnt_id = numbers[FILE_MNT_ID],
		.mode = numbers[FILE_MODE],
		.path_size = path.end - path.at, /* an entry has 32 bits of size */
		.path = (const char *)path.at,
	};
	return true;
}

static bool get_entry(struct entries *in, struct entries *entry)
{
	uint32_t size;

	if (in->end - in->at < ENTRY_HEAD)
		return false;
	size = in->at[0] | in->at[1] << 8 | in->at[2] << 16 | (uint32_t)in->at[3] << 24;
	in->at += ENTRY_HEAD;
	return get_bytes(in, size, entry);
}

int file_record_next(struct entries *entries, struct file_record *record)
{
	struct entries entry, file;
	uint64_t tag;

	while (entries->at < entries->end) {
		if (!get_entry(entries, &entry) || !get_varint(&entry, &tag))
			return -1;
		if (tag != (ENTRY_FILE << 3 | WIRE_LENGTH))
			continue;
		if (!get_length(&entry, &file) || entry.at != entry.end || !get_file(file, record))
			return -1;
		return 1;
	}
	return 0;
}
