// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a child does for this process: what it enters and mounts is gone with it, and what it
 * leaves is an fd or an answer.
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
#include <sys/wait.h>
#include <unistd.h>

#include "syscalls.h"

/*
 * A child that sends no SIGCHLD when it ends: CRIU's handler of that signal takes every
 * child that ends for a task that was lost (sigchld_handler, criu/parasite-syscall.c).
 */
static pid_t lone_child(unsigned long flags)
{
#if defined(__s390x__) /* clone(2): there the stack comes first */
	return syscall(SYS_clone, 0, flags, 0, 0, 0);
#else
	return syscall(SYS_clone, flags, 0, 0, 0, 0);
#endif
}

/* Its exit status as -errno; a signal that CRIU handles may come in between. */
static int await_child(pid_t pid)
{
	pid_t ended;
	int status;

	do
		ended = waitpid(pid, &status, __WALL);
	while (ended < 0 && errno == EINTR);
	return ended == pid && WIFEXITED(status) ? -WEXITSTATUS(status) : -ECHILD;
}

#define MAX_VIEW 1024 /* mounts of one tree */

/*
 * Has a child do some work in the memory of this process, which waits for it, as vfork(2) has it:
 * to copy the memory of a process with a Python in it would take longer than the work. Signals
 * wait too, for a handler would run in the child. It may enter no user namespace: who has rights
 * over processes there would have them over this memory.
 */
static int in_own_memory(int (*work)(void *), void *arg)
{
	static char stack[64 << 10] __attribute__((aligned(16)));
	sigset_t all, before;
	pid_t pid;
	int result;

	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, &before);
	pid = clone(work, stack + sizeof(stack), CLONE_VM | CLONE_VFORK, arg);
	result = pid < 0 ? -errno : await_child(pid);
	sigprocmask(SIG_SETMASK, &before, NULL);
	return result;
}

struct rehearsal {
	int ns_fd, user_ns_fd, fd;
	uint64_t set, clear;
	int userns_fd;
};

static int rehearse_clone(void *arg)
{
	const struct rehearsal *r = arg;
	int tree;

	if (setns(r->ns_fd, CLONE_NEWNS) ||
	    (r->user_ns_fd >= 0 && setns(r->user_ns_fd, CLONE_NEWUSER)))
		return errno;
	tree = sys_open_tree(r->fd, "", AT_EMPTY_PATH | OPEN_TREE_CLONE_);
	if (tree < 0)
		return -tree;
	return r->set | r->clear ? -sys_mount_setattr(tree, r->set, r->clear, 0, r->userns_fd) : 0;
}

/* Tried in a child: setns(2) would change this process's root, directory and privileges. */
int sys_rehearse_clone(int ns_fd, int user_ns_fd, int fd, uint64_t set, uint64_t clear,
		       int userns_fd)
{
	struct rehearsal r = { ns_fd, user_ns_fd, fd, set, clear, userns_fd };
	pid_t pid;

	if (user_ns_fd < 0)
		return in_own_memory(rehearse_clone, &r);
	pid = lone_child(0);
	if (pid == 0) {
		prctl(PR_SET_DUMPABLE, 0); /* it has a copy of CRIU's memory, and of its fds */
		_exit(rehearse_clone(&r));
	}
	return pid < 0 ? -errno : await_child(pid);
}

/* Anonymous mounts are cloned in the very mount namespace that they were made in. */
static int clone_in_one_of(const int *ns_fds, int count, int fd, unsigned int flags)
{
	int tree = -EINVAL;

	for (int i = 0; i < count && tree < 0; i++)
		if (!setns(ns_fds[i], CLONE_NEWNS))
			tree = sys_open_tree(fd, "",
					     AT_EMPTY_PATH | O_CLOEXEC | OPEN_TREE_CLONE_ | flags);
	return tree;
}

/* On a new tmpfs, for the root of the tree may be a file, and nothing else is known here. */
static int attach_privately(int tree)
{
	int ctx, base, dir;
	struct stat st;

	if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
		return -errno;
	ctx = sys_fsopen("tmpfs");
	if (ctx < 0 || syscall(NR_fsconfig, ctx, 6 /* FSCONFIG_CMD_CREATE */, NULL, NULL, 0))
		return -errno;
	base = sys_fsmount(ctx, 0);
	dir = open("/", O_PATH | O_CLOEXEC);
	if (base < 0 || dir < 0 || sys_move_mount(base, dir) || fstat(tree, &st))
		return -errno;
	if (S_ISDIR(st.st_mode) ? mkdirat(base, "tree", 0700) : mknodat(base, "tree", S_IFREG, 0))
		return -errno;
	return or_errno(
		syscall(NR_move_mount, tree, "", base, "tree", 4 /* MOVE_MOUNT_F_EMPTY_PATH */));
}

/* What a child is asked, and its answers for the mounts of the tree, one after another. */
struct view {
	const int *ns_fds;
	int ns_count, fd;
	uint64_t mask;
	char *buf;
	size_t size;
	int err, count;
};

static int fill_view(int tree, struct view *view)
{
	struct mnt_id_req_ver1 req = { .size = sizeof(req) };
	static uint64_t ids[MAX_VIEW];
	uint32_t used;
	int below, err = sys_mnt_id_unique(tree, &ids[0]);

	if (err)
		return err;
	req.mnt_id = ids[0];
	/* In the order in which they were made: a parent comes before its children. */
	below = or_errno(syscall(NR_listmount, &req, &ids[1], MAX_VIEW - 1, 0));
	if (below < 0)
		return below;
	if (below == MAX_VIEW - 1)
		return -E2BIG;
	for (view->count = 0; view->count <= below; view->count++) {
		err = sys_statmount_in_ns(ids[view->count], 0, view->mask, view->buf, view->size);
		if (err)
			return err;
		memcpy(&used, view->buf, sizeof(used)); /* the size is the first field */
		view->buf += used;
		view->size -= used;
	}
	return 0;
}

static int view_clone(void *arg)
{
	struct view *view = arg;
	int tree = clone_in_one_of(view->ns_fds, view->ns_count, view->fd, AT_RECURSIVE_);

	view->err = tree < 0 ? tree : attach_privately(tree);
	if (!view->err)
		view->err = fill_view(tree, view);
	return 0;
}

/*
 * statmount(2) tells of an anonymous mount nothing at all. So a clone of its tree is looked
 * at, which a child attaches where nobody else sees it: the answers for the mounts of the
 * tree follow one another in buf. Returns how many they are; -EINVAL when the kernel clones
 * the mount in none of these namespaces.
 */
int sys_view_clone(const int *ns_fds, int count, int fd, uint64_t mask, void *buf, size_t size)
{
	struct view view = { ns_fds, count, fd, mask, buf, size, -ECHILD, 0 };
	int err = in_own_memory(view_clone, &view);

	if (!err)
		err = view.err;
	return err ? err : view.count;
}

/* For a child that shares its parent's fds: what it puts in the place of one is the parent's. */
static int put_in_slot(int tree, int slot)
{
	int err;

	if (tree < 0)
		return tree;
	err = dup3(tree, slot, O_CLOEXEC) < 0 ? -errno : 0;
	close(tree);
	return err;
}

/* The fd in the slot when the child has put one there; else it is closed, and -errno. */
static int await_slot(pid_t pid, int slot)
{
	int err = pid < 0 ? -errno : await_child(pid);

	if (!err)
		return slot;
	close(slot);
	return err;
}

/* Without what is mounted below; the tree fd is the caller's. */
int sys_clone_in_one_of(const int *ns_fds, int count, int fd)
{
	int slot = open("/", O_PATH | O_CLOEXEC);
	pid_t pid;

	if (slot < 0)
		return -errno;
	pid = lone_child(CLONE_FILES);
	if (pid == 0)
		_exit(-put_in_slot(clone_in_one_of(ns_fds, count, fd, 0), slot));
	return await_slot(pid, slot);
}

/* In a child with a mount namespace of its own and its parent's fds. */
static int make_root_with_proc(int slot, const char *name)
{
	char target[300];
	int tree;

	snprintf(target, sizeof(target), "/proc/%s", name);
	/* The new tmpfs covers the procfs, which is reached from the working directory. */
	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) || chdir("/proc") ||
	    mount("criu-detached", "/proc", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755") ||
	    mkdir(target, 0755) || mount(".", target, NULL, MS_BIND, NULL) || chdir("/proc"))
		return -errno;
	tree = sys_open_tree(AT_FDCWD, ".", O_CLOEXEC | OPEN_TREE_CLONE_ | AT_RECURSIVE_);
	return put_in_slot(tree, slot);
}

int sys_root_with_proc(const char *name)
{
	int slot = open("/proc", O_PATH | O_CLOEXEC);
	pid_t pid;

	if (slot < 0)
		return -errno;
	pid = lone_child(CLONE_NEWNS | CLONE_FILES);
	if (pid == 0)
		_exit(-make_root_with_proc(slot, name));
	return await_slot(pid, slot);
}

static int write_file(pid_t pid, const char *name, const char *text)
{
	char path[64];
	int fd, err = 0;

	snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, name);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (write(fd, text, strlen(text)) < 0)
		err = -errno;
	close(fd);
	return err;
}

/* A user namespace with the given maps lives as long as an fd of it: a child lends it. */
int sys_userns(const char *uid_map, const char *gid_map)
{
	char path[64];
	pid_t pid, parent = getpid();
	int fd = -1, err;

	pid = lone_child(CLONE_NEWUSER);
	if (pid < 0)
		return -errno;
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL); /* criu may be killed meanwhile, */
		if (getppid() != parent)	  /* or has been before that */
			_exit(1);
		for (;;)
			pause();
	}
	err = write_file(pid, "uid_map", uid_map);
	if (!err)
		err = write_file(pid, "gid_map", gid_map);
	if (!err) {
		snprintf(path, sizeof(path), "/proc/%d/ns/user", (int)pid);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		err = fd < 0 ? -errno : 0;
	}
	kill(pid, SIGKILL);
	await_child(pid);
	return err ? err : fd;
}
