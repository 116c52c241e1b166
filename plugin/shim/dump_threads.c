// SPDX-License-Identifier: GPL-2.0-only
/*
 * Two system calls tell of a thread that it has nothing for itself (kcmp(2)), so this
 * costs a dump of any process some microseconds for each thread.
 */
#define _GNU_SOURCE
#include "dump_threads.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/kcmp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "criu.h"
#include "dump_links.h"
#include "embedded.h"
#include "log.h"
#include "steer.h"

/* The main thread of the process that is dumped. */
static pid_t leader;

/* A file that a thread has for itself: CRIU would lose it, and where, Python says. */
static int dump_own_file(int fd, pid_t tid, const char *what)
{
	char path[64], link[PATH_MAX], whose[NAME_MAX + 128];
	struct file_facts facts;
	ssize_t len;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	len = readlink(path, link, sizeof(link) - 1);
	if (len <= 0 || *link != '/' || facts_of(fd, &facts))
		return 0;
	link[len] = '\0';
	if (mount_known(facts.mnt_id) || on_kernel_shmem(&facts))
		return 0;
	if (start_python())
		return -1; /* CRIU looks at none of a thread's own files */
	snprintf(whose, sizeof(whose), "%s of thread %d of process %d", what, tid, leader);
	return python.dump_thread_file(fd, link, &facts, whose);
}

/* It may be on a detached mount. What is gone (ENOENT) is nothing to lose. */
static int not_seen(pid_t tid, const char *what)
{
	if (errno == ENOENT)
		return 0;
	pr_err("can't look at %s of thread %d of process %d: %s", what, tid, leader,
	       strerror(errno));
	return -1;
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
	struct file_facts own, other;
	int there = open_link(leader, link);
	bool same;

	if (there < 0)
		return false;
	same = !facts_of(fd, &own) && !facts_of(there, &other) && same_file(&own, &other);
	close(there);
	return same;
}

static int dump_place(pid_t tid, const char *link, const char *what)
{
	int fd = open_link(tid, link);
	int ret = 0;

	if (fd < 0)
		return not_seen(tid, what);
	if (!is_leaders(fd, link))
		ret = dump_own_file(fd, tid, what);
	close(fd);
	return ret;
}

static int dump_fds(pid_t tid)
{
	char path[PATH_MAX], what[NAME_MAX + 8];
	struct dirent *entry;
	int fd, ret = 0;
	DIR *fds;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/fd", leader, tid);
	fds = opendir(path);
	if (!fds)
		return not_seen(tid, "the fds");
	while (!ret && (entry = readdir(fds))) {
		unsigned long number = strtoul(entry->d_name, NULL, 10);

		/* The main thread may have nothing by that number, which is an error. */
		if (*entry->d_name == '.' || !compare(tid, KCMP_FILE, number))
			continue;
		snprintf(what, sizeof(what), "fd %s", entry->d_name);
		fd = openat(dirfd(fds), entry->d_name, O_PATH | O_CLOEXEC);
		ret = fd < 0 ? not_seen(tid, what) : dump_own_file(fd, tid, what);
		if (fd >= 0)
			close(fd);
	}
	closedir(fds);
	return ret;
}

/* What a stopped thread has that its main thread has not; the first that is refused ends it. */
static int dump_own_files(pid_t tid)
{
	int ret = 0;

	/* A process's main thread comes before its others. */
	if (!leader || syscall(SYS_tgkill, leader, tid, 0)) {
		leader = tid;
		return 0;
	}
	/* Where the kernel cannot tell (-1), all is taken to be shared, as CRIU does. */
	if (compare(tid, KCMP_FS, 0) > 0) {
		ret = dump_place(tid, "cwd", "the working directory");
		if (!ret)
			ret = dump_place(tid, "root", "the root");
	}
	if (!ret && compare(tid, KCMP_FILES, 0) > 0)
		ret = dump_fds(tid);
	return ret;
}

/* dump_sched_info (criu/cr-dump.c): called once for each thread, the main one first. */
static int steered_getpriority(int which, id_t who)
{
	int saved_errno = errno;

	if (which == PRIO_PROCESS && dump_own_files(who)) {
		errno = EIO;
		return -1;
	}
	errno = saved_errno; /* -1 is a priority too, if this is still 0 */
	return getpriority(which, who);
}

static const struct steering thread_steering[] = {
	{ "getpriority", steered_getpriority },
};

int dump_threads_init(void)
{
	leader = 0;
	return STEER(thread_steering);
}
