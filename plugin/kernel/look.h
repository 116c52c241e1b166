// SPDX-License-Identifier: GPL-2.0-only
/* What the parts of a walk share (walk.h). */
#ifndef CRIU_DETACHED_LOOK_H
#define CRIU_DETACHED_LOOK_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

#include "walk.h"

/* Places that hang, and are passed over. */
#define MAX_SKIPPED 4

/* Where the answer is: memory that the child shares with this process. */
struct arena {
	size_t size;
	uint64_t beats; /* goes up with each look: the child is alive */
	struct seen at; /* the place that is looked at */
	struct seen skipped[MAX_SKIPPED];
	unsigned int nr_skipped;
	int error; /* it is full, or there is no memory */
	size_t count, capacity, looks;
	struct seen seen[];
};

struct sockets;

struct look {
	const struct walk *walk;
	struct arena *arena;
	struct sockets *sockets; /* NULL: those of tasks are told as they are */
	int32_t pid, tid;
	int dir;      /* of the task in procfs */
	int pid_fd;   /* for the sockets that no table has; -1: not opened */
	uint64_t net; /* its network namespace; 0: not asked for */
};

/** ended - only these errors say that a task, or what it had, is gone */
static inline bool ended(int error)
{
	return error == ENOENT || error == ESRCH;
}

/* --- walk_task.c --- */

/** look_at_task - all that a task has */
void look_at_task(struct look *look);

/** look_note - take note of something; NULL when there is no room */
struct seen *look_note(struct look *look, int what, uint64_t number, const struct statx *stx);
void look_note_error(struct look *look, int what, uint64_t number, uint32_t mnt_id, int error);

/** glance - statx(2) without any question to the filesystem; 0 or an errno */
int glance(int dir, const char *name, struct statx *stx);

/** has_number - tell whether an ascending array has a number */
bool has_number(const uint64_t *numbers, size_t count, uint64_t number);

/* --- walk_sockets.c --- */

/** sockets_new - a table of unix sockets, empty; NULL: no memory */
struct sockets *sockets_new(void);

/** look_at_socket - take note of a socket if it is bound to a file */
void look_at_socket(struct look *look, int fds, const char *name, const struct statx *stx);

/**
 * look_at_bound_sockets - once more, at the end, the sockets that are bound to files which no
 * attached mount shows, whoever has them: pid 0
 */
void look_at_bound_sockets(struct look *look);

#endif
