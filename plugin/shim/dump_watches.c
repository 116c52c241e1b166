// SPDX-License-Identifier: GPL-2.0-only
/* Steers CRIU's search for watched inodes; the names that it is given: watch_names.c. */
#define _GNU_SOURCE
#include "dump_watches.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "criu.h"
#include "embedded.h"
#include "log.h"
#include "steer.h"
#include "watch_names.h"

static bool pre_dumping;

/* What is not found and why is in the log; CRIU then fails by itself. */
static void find_watched(void)
{
	if (start_python())
		return;
	if (pre_dumping)
		python.pre_dump_watches();
	else
		python.dump_watches();
}

static int steered_fstatat(int dirfd, const char *path, struct stat *st, int flags)
{
	if (!strcmp(path, WATCH_SEARCH + 1)) {
		find_watched();
		errno = ENOENT;
		return -1;
	}
	return watch_name_stat(path, st) ? 0 : fstatat(dirfd, path, st, flags);
}

/*
 * A deleted file that is watched, as its handle led to it on a mount that CRIU knows. Where it
 * is unsure (-1) CRIU has to search, and the dump fails unless it finds the file.
 */
static bool is_our_ghost(int fd)
{
	struct file_facts facts;

	return !facts_of(fd, &facts) && !facts.nlink && !start_python() &&
	       python.dump_deleted_watched(fd);
}

/*
 * CRIU opens watched files by their handles (open_by_handle, criu/fsnotify.c), and knows no
 * deleted ones but its own ghosts. Where that fails it searches: see steered_fstatat.
 */
static long steered_syscall(long number, ...)
{
	long ret, arg[6];
	va_list args;

	va_start(args, number);
	for (int i = 0; i < 6; i++)
		arg[i] = va_arg(args, long);
	va_end(args);
	ret = syscall(number, arg[0], arg[1], arg[2], arg[3], arg[4], arg[5]);
	if (number == SYS_open_by_handle_at && ret >= 0 && is_our_ghost((int)ret)) {
		close((int)ret);
		errno = ESTALE;
		return -1;
	}
	return ret;
}

static const struct steering search_steering[] = {
	STEER_STAT("fstatat", steered_fstatat),
};

static const struct steering handle_steering[] = {
	{ "syscall", steered_syscall },
};

void dump_watches_init(bool in_pre_dump)
{
	char path[] = WATCH_SEARCH;

	watch_names_reset();
	pre_dumping = in_pre_dump;
	if (!criu.irmap_scan_path_add || STEER(search_steering) || criu.irmap_scan_path_add(path))
		return;
	if (!in_pre_dump && STEER(handle_steering))
		pr_warn("%s: watches of deleted files on detached mounts are refused",
			why_not_steered("syscall"));
}
