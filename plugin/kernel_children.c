// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a child does for this process in other namespaces (child.h): setns(2) would change this
 * process's root, directory and privileges.
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

/* --- trying to clone a mount --- */

/* No user namespace is in it, so none can be entered in this process's memory. */
struct rehearsal {
	int ns_fd, fd;
	uint64_t set, clear;
	int userns_fd; /* the id-map's; it is not entered */
};

/* In the mount namespace; returns an errno, as what follows. */
static int clone_and_change(const struct rehearsal *r)
{
	int tree = sys_open_tree(r->fd, "", AT_EMPTY_PATH | O_CLOEXEC | OPEN_TREE_CLONE_);

	if (tree < 0)
		return -tree;
	if (!(r->set | r->clear))
		return 0;
	return -sys_mount_setattr(tree, r->set, r->clear, 0, r->userns_fd);
}

static int rehearse(void *arg)
{
	const struct rehearsal *r = arg;

	return setns(r->ns_fd, CLONE_NEWNS) ? errno : clone_and_change(r);
}

static int rehearse_as_user(const struct rehearsal *r, int user_ns_fd)
{
	/* First, for it has a copy of CRIU's memory, and of its fds. */
	if (prctl(PR_SET_DUMPABLE, 0) || setns(r->ns_fd, CLONE_NEWNS) ||
	    setns(user_ns_fd, CLONE_NEWUSER))
		return errno;
	return clone_and_change(r);
}

int sys_rehearse_clone(int ns_fd, int user_ns_fd, int fd, uint64_t set, uint64_t clear,
		       int userns_fd)
{
	struct rehearsal r = { ns_fd, fd, set, clear, userns_fd };
	pid_t pid;

	if (user_ns_fd < 0)
		return child_in_own_memory(rehearse, &r, 0);
	pid = child_with_copy(0);
	if (pid == 0)
		_exit(rehearse_as_user(&r, user_ns_fd));
	return pid < 0 ? -errno : child_await(pid);
}

/* --- clones of anonymous mounts, which work in the very mount namespace of their origin --- */

struct origins {
	const int *ns_fds;
	int count;
};

static int clone_in_one_of(const struct origins *origins, int fd, unsigned int flags)
{
	flags |= AT_EMPTY_PATH | O_CLOEXEC | OPEN_TREE_CLONE_;
	for (int i = 0; i < origins->count; i++) {
		int tree = setns(origins->ns_fds[i], CLONE_NEWNS) ? -errno
								  : sys_open_tree(fd, "", flags);

		/* It is another one, or one that may not be entered. All else is the answer. */
		if (tree != -EINVAL && tree != -EPERM)
			return tree;
	}
	return -EINVAL;
}

struct single {
	struct origins origins;
	int fd, tree;
};

static int clone_single(void *arg)
{
	struct single *single = arg;

	single->tree = clone_in_one_of(&single->origins, single->fd, 0);
	return 0;
}

int sys_clone_in_one_of(const int *ns_fds, int count, int fd)
{
	struct single single = { { ns_fds, count }, fd, -ECHILD };
	int err = child_in_own_memory(clone_single, &single, CLONE_FILES);

	return err ? err : single.tree;
}

/*
 * --- a look at a tree of anonymous mounts: a clone is attached where nobody else sees it ---
 *
 * What the child opens for that is closed by its end.
 */

#define MAX_VIEW 1024 /* mounts of one tree */

/* What a child is asked, and its answers for the mounts of the tree, one after another. */
struct view {
	struct origins origins;
	int fd;
	uint64_t mask;
	char *buf;
	size_t size;
	int err, count;
};

static int make_tmpfs(void)
{
	int ctx = sys_fsopen("tmpfs");
	int err = ctx < 0 ? ctx : sys_fsconfig(ctx, 6 /* FSCONFIG_CMD_CREATE */, NULL, NULL);

	return err ? err : sys_fsmount(ctx, 0);
}

/* On a new tmpfs, for the root of the tree may be a file, and nothing else is known here. */
static int attach_privately(int tree)
{
	struct stat st;
	int base, dir, err;

	if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
	    fstat(tree, &st))
		return -errno;
	base = make_tmpfs();
	if (base < 0)
		return base;
	dir = open("/", O_PATH | O_CLOEXEC);
	if (dir < 0)
		return -errno;
	err = sys_move_mount(base, dir);
	if (err)
		return err;
	if (S_ISDIR(st.st_mode) ? mkdirat(base, "tree", 0700) : mknodat(base, "tree", S_IFREG, 0))
		return -errno;
	return or_errno(
		syscall(NR_move_mount, tree, "", base, "tree", 4 /* MOVE_MOUNT_F_EMPTY_PATH */));
}

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
	int tree = clone_in_one_of(&view->origins, view->fd, AT_RECURSIVE_);

	view->err = tree < 0 ? tree : attach_privately(tree);
	if (!view->err)
		view->err = fill_view(tree, view);
	return 0;
}

int sys_view_clone(const int *ns_fds, int count, int fd, uint64_t mask, void *buf, size_t size)
{
	struct view view = { { ns_fds, count }, fd, mask, buf, size, -ECHILD, 0 };
	int err = child_in_own_memory(view_clone, &view, 0);

	if (!err)
		err = view.err;
	return err ? err : view.count;
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
