// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a child (child.h) does for this process in other namespaces, or in new ones: setns(2) and
 * unshare(2) would change this process's root, directory and privileges.
 */
#define _GNU_SOURCE
#include "kernel.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "child.h"
#include "syscalls.h"

/* --- a dry run of cloning a mount --- */

/*
 * No user namespace is in it that could be entered in this process's memory: that of the
 * attributes has the id-map.
 */
struct dry_run {
	int ns_fd, fd;
	const struct uapi_mount_attr *attr;
};

/* In the mount namespace; returns an errno, as what follows. */
static int clone_and_change(const struct dry_run *run)
{
	int tree = sys_open_tree(run->fd, "", AT_EMPTY_PATH | O_CLOEXEC | OPEN_TREE_CLONE_);

	if (tree < 0)
		return -tree;
	if (!(run->attr->attr_set | run->attr->attr_clr))
		return 0;
	return -sys_mount_setattr(tree, run->attr);
}

static int dry_run(void *arg)
{
	const struct dry_run *run = arg;

	return setns(run->ns_fd, CLONE_NEWNS) ? errno : clone_and_change(run);
}

static int dry_run_as_user(const struct dry_run *run, int user_ns_fd)
{
	/* First, for it has a copy of CRIU's memory, and of its fds. */
	if (prctl(PR_SET_DUMPABLE, 0) || setns(run->ns_fd, CLONE_NEWNS) ||
	    setns(user_ns_fd, CLONE_NEWUSER))
		return errno;
	return clone_and_change(run);
}

int sys_dry_run_clone(int ns_fd, int user_ns_fd, int fd, const struct uapi_mount_attr *attr)
{
	struct dry_run run = { ns_fd, fd, attr };
	pid_t pid;

	if (user_ns_fd < 0)
		return child_in_own_memory(dry_run, &run, 0);
	pid = child_with_copy(0);
	if (pid == 0)
		_exit(dry_run_as_user(&run, user_ns_fd));
	return pid < 0 ? -errno : child_await(pid);
}

/* --- a tmpfs with the procfs in it --- */

struct root_with_proc {
	const char *name;
	int tree;
};

/* In a mount namespace of its own. */
static int make_root_with_proc(void *arg)
{
	struct root_with_proc *root = arg;
	char target[300];

	if (snprintf(target, sizeof(target), "/proc/%s", root->name) >= (int)sizeof(target))
		return ENAMETOOLONG;
	/* The new tmpfs covers the procfs, which is reached from the working directory. */
	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) || chdir("/proc") ||
	    mount("criu-detached", "/proc", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755") ||
	    mkdir(target, 0755) || mount(".", target, NULL, MS_BIND, NULL) || chdir("/proc"))
		return errno;
	root->tree = sys_open_tree(AT_FDCWD, ".", O_CLOEXEC | OPEN_TREE_CLONE_ | AT_RECURSIVE_);
	return 0;
}

int sys_root_with_proc(const char *name)
{
	struct root_with_proc root = { name, -ECHILD };
	int err = child_in_own_memory(make_root_with_proc, &root, CLONE_NEWNS | CLONE_FILES);

	return err ? err : root.tree;
}

/* --- a user namespace: it lives as long as an fd of it, which a child lends --- */

static int write_map(pid_t pid, const char *name, const char *text)
{
	char path[64];
	int fd, err = 0;

	snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, name);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (write(fd, text, strlen(text)) < 0) /* the kernel takes a map whole, or not */
		err = -errno;
	close(fd);
	return err;
}

static int map_and_open(pid_t pid, const char *uid_map, const char *gid_map)
{
	char path[64];
	int err = write_map(pid, "uid_map", uid_map);

	if (!err)
		err = write_map(pid, "gid_map", gid_map);
	if (err)
		return err;
	snprintf(path, sizeof(path), "/proc/%d/ns/user", (int)pid);
	return or_errno(open(path, O_RDONLY | O_CLOEXEC));
}

int sys_userns(const char *uid_map, const char *gid_map)
{
	pid_t pid, parent = getpid();
	int fd;

	pid = child_with_copy(CLONE_NEWUSER);
	if (pid < 0)
		return -errno;
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL); /* criu may be killed meanwhile, */
		if (getppid() != parent)	  /* or has been before that */
			_exit(1);
		for (;;)
			pause();
	}
	fd = map_and_open(pid, uid_map, gid_map);
	kill(pid, SIGKILL);
	child_await(pid);
	return fd;
}
