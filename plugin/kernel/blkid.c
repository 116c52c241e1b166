// SPDX-License-Identifier: GPL-2.0-only
/* Which filesystem does a device carry? Asked of libblkid. */
#define _GNU_SOURCE
#include "kernel.h"

#include <dlfcn.h>
#include <stdio.h>

#include "syscalls.h"

/*
 * What libblkid (libblkid/blkid.h) finds in a device or an image: type, UUID and UUID_SUB, of 64
 * bytes each. The library is there for this moment alone: a run that meets no such filesystem
 * does not load it, and nothing of it is left in a restored task. Python's ctypes would do the
 * same, but its import takes longer, and libffi leaves an fd open.
 */
int blkid_probe(int fd, uint64_t offset, char *values)
{
	static const char *const names[] = { "TYPE", "UUID", "UUID_SUB" };
	void *(*new_probe)(void), *probe;
	int (*set_device)(void *, int, long long, long long);
	int (*do_safeprobe)(void *);
	int (*lookup_value)(void *, const char *, const char **, size_t *);
	void (*free_probe)(void *);
	void *lib = dlopen("libblkid.so.1", RTLD_NOW | RTLD_LOCAL);
	const char *value;
	int found = -ELIBACC;

	if (!lib)
		return -ELIBACC;
	new_probe = dlsym(lib, "blkid_new_probe");
	set_device = dlsym(lib, "blkid_probe_set_device");
	do_safeprobe = dlsym(lib, "blkid_do_safeprobe");
	lookup_value = dlsym(lib, "blkid_probe_lookup_value");
	free_probe = dlsym(lib, "blkid_free_probe");
	if (!new_probe || !set_device || !do_safeprobe || !lookup_value || !free_probe)
		goto out;
	found = -ENOMEM;
	probe = new_probe();
	if (!probe)
		goto out;
	/* 0: found; 1: nothing; -1: failed; -2: more than one filesystem */
	found = set_device(probe, fd, offset, 0) ? -EIO : do_safeprobe(probe) ? -ENODATA : 0;
	for (int i = 0; !found && i < 3; i++)
		if (!lookup_value(probe, names[i], &value, NULL))
			snprintf(values + 64 * i, 64, "%s", value);
	free_probe(probe);
out:
	dlclose(lib);
	return found;
}
