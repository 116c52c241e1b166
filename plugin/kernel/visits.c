// SPDX-License-Identifier: GPL-2.0-only
/* What this process does in another mount namespace, which it enters for a moment. */
#define _GNU_SOURCE
#include "kernel.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <unistd.h>

#include "syscalls.h"

/*
 * As CRIU enters the namespace of a unix socket (prep_unix_sk_cwd, criu/sk-unix.c):
 * setns(2) changes root and directory to the root of the namespace, so both are put back.
 */
static int visit(int ns_fd, int own_ns_fd, int (*work)(int, int), int fd, int other)
{
	int root = open("/", O_PATH | O_CLOEXEC), cwd = open(".", O_PATH | O_CLOEXEC);
	int result;

	if (root < 0 || cwd < 0 || setns(ns_fd, CLONE_NEWNS)) {
		result = -errno;
	} else {
		result = work(fd, other);
		/* A task must not go on anywhere else. */
		if (setns(own_ns_fd, CLONE_NEWNS) || fchdir(root) || chroot(".") || fchdir(cwd))
			_exit(1);
	}
	if (root >= 0)
		close(root);
	if (cwd >= 0)
		close(cwd);
	return result;
}

static int clone_here(int fd, int unused)
{
	(void)unused;
	return sys_open_tree(fd, "", AT_EMPTY_PATH | O_CLOEXEC | OPEN_TREE_CLONE_);
}

int sys_clone_mount_visiting(int ns_fd, int own_ns_fd, int fd)
{
	return visit(ns_fd, own_ns_fd, clone_here, fd, -1);
}

int sys_attach_visiting(int ns_fd, int own_ns_fd, int tree, int target)
{
	return visit(ns_fd, own_ns_fd, sys_move_mount, tree, target);
}

/* --- a mount namespace for this process alone, until it leaves --- */

/* What to come back to: namespace, root and directory, for setns(2) changes the last two. */
static void close_place(const int *place)
{
	for (int i = 0; i < 3; i++)
		if (place[i] >= 0)
			close(place[i]);
}

int sys_leave_private_ns(const int *place)
{
	int err = 0;

	if (setns(place[0], CLONE_NEWNS) || fchdir(place[1]) || chroot(".") || fchdir(place[2]))
		err = -errno;
	close_place(place);
	return err;
}

int sys_enter_private_ns(int *place)
{
	int err;

	place[0] = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC);
	place[1] = open("/", O_PATH | O_CLOEXEC);
	place[2] = open(".", O_PATH | O_CLOEXEC);
	if (place[0] < 0 || place[1] < 0 || place[2] < 0 || unshare(CLONE_NEWNS)) {
		err = -errno;
		close_place(place);
		return err;
	}
	if (!mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
		return 0;
	err = -errno;
	if (sys_leave_private_ns(place))
		_exit(1); /* CRIU must not go on anywhere else */
	return err;
}
