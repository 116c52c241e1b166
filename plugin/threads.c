// SPDX-License-Identifier: GPL-2.0-only
/*
 * Two system calls tell of a thread that it has nothing for itself (kcmp(2)), so this
 * costs a dump of any process some microseconds for each thread.
 */
#define _GNU_SOURCE
#include "threads.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/kcmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef int show_t(int fd, pid_t leader, pid_t tid, const char *what);

static pid_t leader;

void threads_reset(void)
{
	leader = 0;
}

static long compare(pid_t tid, int type, unsigned long index)
{
	return syscall(SYS_kcmp, leader, tid, type, index, index);
}

static int open_link(pid_t tid, const char *link)
{
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "/proc/%d/task/%d/%s", leader, tid, link);
	return open(path, O_PATH | O_CLOEXEC);
}

static bool is_leaders(int fd, const char *link)
{
	const unsigned int mask = STATX_INO | STATX_MNT_ID;
	struct statx own, other;
	int there = open_link(leader, link);
	bool same;

	if (there < 0)
		return false;
	same = !statx(fd, "", AT_EMPTY_PATH, mask, &own) &&
	       !statx(there, "", AT_EMPTY_PATH, mask, &other) && own.stx_ino == other.stx_ino &&
	       own.stx_mnt_id == other.stx_mnt_id && own.stx_dev_major == other.stx_dev_major &&
	       own.stx_dev_minor == other.stx_dev_minor;
	close(there);
	return same;
}

static int show_place(pid_t tid, const char *link, const char *what, show_t *show)
{
	int fd = open_link(tid, link);
	int ret = 0;

	if (fd < 0)
		return 0;
	if (!is_leaders(fd, link))
		ret = show(fd, leader, tid, what);
	close(fd);
	return ret;
}

static int show_fds(pid_t tid, show_t *show)
{
	char path[PATH_MAX], what[NAME_MAX + 8];
	struct dirent *entry;
	int fd, ret = 0;
	DIR *fds;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/fd", leader, tid);
	fds = opendir(path);
	if (!fds)
		return 0;
	while (!ret && (entry = readdir(fds))) {
		unsigned long number = strtoul(entry->d_name, NULL, 10);

		/* The main thread may have nothing by that number, which is an error. */
		if (*entry->d_name == '.' || !compare(tid, KCMP_FILE, number))
			continue;
		fd = openat(dirfd(fds), entry->d_name, O_PATH | O_CLOEXEC);
		if (fd < 0)
			continue;
		snprintf(what, sizeof(what), "fd %s", entry->d_name);
		ret = show(fd, leader, tid, what);
		close(fd);
	}
	closedir(fds);
	return ret;
}

int thread_own_files(pid_t tid, show_t *show)
{
	int ret = 0;

	if (!leader || tgkill(leader, tid, 0)) {
		leader = tid; /* it is of another process: the main thread comes first */
		return 0;
	}
	/* Where the kernel cannot tell (-1), all is taken to be shared, as CRIU does. */
	if (compare(tid, KCMP_FS, 0) > 0) {
		ret = show_place(tid, "cwd", "the working directory", show);
		if (!ret)
			ret = show_place(tid, "root", "the root", show);
	}
	if (!ret && compare(tid, KCMP_FILES, 0) > 0)
		ret = show_fds(tid, show);
	return ret;
}
