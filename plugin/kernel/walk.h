/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A look at what tasks have open, mapped and bound, and where they are: the C side of
 * criu_detached/kernel/walk.py, which has the reasons. kernel_build.py gives this to cffi.
 *
 * Nothing of a task is opened or read: statx(2) of its links in procfs, without any question to
 * the filesystem (AT_STATX_DONT_SYNC, mask 0), tells mount id and device. Even a FUSE filesystem of
 * another user answers that, and one whose server does not answer any more.
 */
#ifndef CRIU_DETACHED_WALK_H
#define CRIU_DETACHED_WALK_H

#include <stddef.h>
#include <stdint.h>

#include "facts.h"

/* An attached mount. */
struct mount_row {
	uint64_t id; /* the unique one; 0: not told */
	uint64_t ns_id;
	uint64_t dev; /* of the superblock */
	uint32_t mnt_id;
	uint32_t magic;
	uint32_t many_devices; /* its files may show other device numbers */
	uint32_t spare;
};

/*
 * The mounts of all mount namespaces; *rows is the caller's, for sys_free_mounts(). many_devices
 * has the magic numbers of filesystems whose files may show other device numbers.
 * -ENOTTY: the kernel does not walk the namespaces (before Linux 6.12); -EPERM: it does not let
 * this process do so, as in a PID namespace.
 */
int sys_all_mounts(const uint32_t *many_devices, size_t nr_many, struct mount_row **rows,
		   size_t *count);
void sys_free_mounts(struct mount_row *rows);
/*
 * Sort by mnt_id, as a walk wants them, and write the devices of their superblocks, ascending and
 * each once, to devs, which has room for one of each mount; returns how many.
 */
size_t sys_sort_mounts(struct mount_row *rows, size_t count, uint64_t *devs);

/* Something that a task has, or why it is not known whether it has it. */
struct seen {
	uint64_t dev; /* of the file; of the superblock for a mapping and a socket; 0: not told */
	uint64_t ino; /* likewise */
	uint64_t number; /* fd, or start of a mapping */
	uint64_t end;	 /* of a mapping; of a socket the hash of the name that it is bound to */
	uint64_t socket; /* inode of a socket; dev and ino are of the file that it is bound to */
	uint32_t mnt_id; /* 0: not told */
	uint32_t mode;	 /* 0: not told */
	int32_t pid;	 /* 0: no task that was looked at has it */
	int32_t tid;	 /* of the main thread, or of one that has fds or a place for itself */
	uint16_t what;	 /* 'c'wd, 'r'oot, 'e'xe, 'f'd, 'm'apping, 's'ocket; 'd': all fds, 'M': all
			    mappings, 't': all threads, 'p': all of it */
	uint16_t gone;	 /* the task had it, and had it not any more when it was looked at again */
	int32_t error;	 /* errno of a look */
};

/* What is asked, and the answer. */
struct walk {
	/*
	 * Tasks, ascending: those that sys_look_at_tasks() looks at, and that sys_look_at_others()
	 * leaves out.
	 */
	const int32_t *pids;
	size_t nr_pids;
	/* Mounts on which nothing is of interest, by mnt_id, and their superblocks, ascending. */
	const struct mount_row *mounts;
	size_t nr_mounts;
	const uint64_t *devs;
	size_t nr_devs;
	/* Superblocks of the kernel's own, ascending, and the one of sockets. */
	const uint64_t *internal;
	size_t nr_internal;
	uint64_t sockets;
	/* If it is not 0, the one superblock that is of interest; no mappings, no sockets. */
	uint64_t only;
	/* Tenths of a second that a look may take before its task counts as one that hangs. */
	unsigned int patience;
	/* The answer: what was seen, sorted. */
	struct seen *seen;
	size_t count;
	size_t looks; /* at tasks */
	void *arena;
};

/*
 * Look at some tasks, which do not run: all that they have but what is on internal superblocks.
 * Sockets are told without what they are bound to. 0 or -errno; free it in either case.
 */
int sys_look_at_tasks(struct walk *walk);
/*
 * Look at all tasks but this one and some others, by a child. Left out is what is on attached
 * mounts. Sockets are told if they are bound to a file, be that where it may.
 */
int sys_look_at_others(struct walk *walk);
void sys_free_walk(struct walk *walk);
/* The end of a run of what is seen with one dev and mnt_id. */
size_t sys_end_of_group(const struct seen *seen, size_t count, size_t start);
/* What struct seen has of a name. */
uint64_t sys_name_hash(const char *name, size_t size);

/* The unix sockets of the network namespace of this process that are bound to a name. */
int sys_sockets_named(const char *name, size_t size, struct seen *found, size_t capacity);

/* A socket. */
int sys_socket(void);
/* statx(2) of a path without any question to its filesystem: mnt_id and dev are told at least. */
int sys_glance(int dir, const char *path, struct file_facts *out);

/* --- a child of Python's that may hang (child.h) --- */

int sys_child_that_may_hang(int kept);
int sys_child_await(int pid);
void sys_child_give_up(int pid);
/* 1 when there is something to read from an fd, or its end; 0 after tenths of a second. */
int sys_await_input(int fd, unsigned int patience);

/* 1 when this process traces another, or is its parent; else 0. */
int sys_may_trace(int pid);

#endif
