// SPDX-License-Identifier: GPL-2.0-only
/* The mounts of all mount namespaces, as listmount(2) and statmount(2) tell them (walk.h). */
#define _GNU_SOURCE
#include "kernel.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "syscalls.h"
#include "walk.h"

struct table {
	const uint32_t *many_devices;
	size_t nr_many;
	struct mount_row *rows;
	size_t count, capacity;
};

static int add_row(struct table *table, const struct mount_row *row)
{
	if (table->count == table->capacity) {
		size_t wanted = table->capacity ? table->capacity * 2 : 1024;
		struct mount_row *bigger = realloc(table->rows, wanted * sizeof(*bigger));

		if (!bigger)
			return -ENOMEM;
		table->rows = bigger;
		table->capacity = wanted;
	}
	table->rows[table->count++] = *row;
	return 0;
}

static bool has_many_devices(const struct table *table, uint64_t magic)
{
	for (size_t i = 0; i < table->nr_many; i++)
		if (table->many_devices[i] == magic)
			return true;
	return false;
}

static int add_mount(struct table *table, uint64_t id, uint64_t ns_id)
{
	struct uapi_statmount found;
	struct mount_row row = { .id = id, .ns_id = ns_id };
	int err = sys_statmount_in_ns(id, ns_id, 0x3 /* SB_BASIC, MNT_BASIC */, &found,
				      sizeof(found));

	if (err)
		return err == -ENOENT ? 0 : err; /* it is gone */
	row.dev = makedev(found.sb_dev_major, found.sb_dev_minor);
	row.mnt_id = found.mnt_id_old;
	row.magic = (uint32_t)found.sb_magic;
	row.many_devices = has_many_devices(table, found.sb_magic);
	return add_row(table, &row);
}

static int add_namespace(struct table *table, uint64_t ns_id)
{
	static uint64_t ids[512];
	uint64_t last = 0;

	for (;;) {
		int count = sys_listmount(ns_id, last, ids, 512);

		if (count <= 0)
			return count == -ENOENT ? 0 : count; /* it is gone, or has no mount */
		for (int i = 0; i < count; i++) {
			int err = add_mount(table, ids[i], ns_id);

			if (err)
				return err;
		}
		last = ids[count - 1];
	}
}

/* The namespace that was made first: who copies one makes one that comes later. */
static int first_namespace(uint64_t *ns_id)
{
	int fd = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC), err, other;

	if (fd < 0)
		return -errno;
	err = sys_mount_ns_id(fd, ns_id);
	if (err) {
		close(fd);
		return err;
	}
	while ((other = sys_next_mount_ns(fd, 1, ns_id)) >= 0) {
		close(fd);
		fd = other;
	}
	if (other == -ENOENT)
		return fd;
	close(fd);
	return other;
}

int sys_all_mounts(const uint32_t *many_devices, size_t nr_many, struct mount_row **rows,
		   size_t *count)
{
	struct table table = { .many_devices = many_devices, .nr_many = nr_many };
	uint64_t ns_id = 0;
	int fd = first_namespace(&ns_id), err = fd < 0 ? fd : 0;

	while (!err) {
		int other;

		err = add_namespace(&table, ns_id);
		if (err)
			break;
		other = sys_next_mount_ns(fd, 0, &ns_id);
		if (other < 0) {
			err = other == -ENOENT ? 0 : other;
			break;
		}
		close(fd);
		fd = other;
	}
	if (fd >= 0)
		close(fd);
	if (err) {
		free(table.rows);
		return err;
	}
	*rows = table.rows;
	*count = table.count;
	return 0;
}

void sys_free_mounts(struct mount_row *rows)
{
	free(rows);
}

static int by_mnt_id(const void *one, const void *other)
{
	uint32_t a = ((const struct mount_row *)one)->mnt_id;
	uint32_t b = ((const struct mount_row *)other)->mnt_id;

	return (a > b) - (a < b);
}

static int by_number(const void *one, const void *other)
{
	uint64_t a = *(const uint64_t *)one, b = *(const uint64_t *)other;

	return (a > b) - (a < b);
}

size_t sys_sort_mounts(struct mount_row *rows, size_t count, uint64_t *devs)
{
	size_t kept = 0;

	qsort(rows, count, sizeof(*rows), by_mnt_id);
	for (size_t i = 0; i < count; i++)
		devs[i] = rows[i].dev;
	qsort(devs, count, sizeof(*devs), by_number);
	for (size_t i = 0; i < count; i++)
		if (!kept || devs[kept - 1] != devs[i])
			devs[kept++] = devs[i];
	return kept;
}
