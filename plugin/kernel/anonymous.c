// SPDX-License-Identifier: GPL-2.0-only
/*
 * Anonymous mounts. The kernel clones one in the very mount namespace alone that it was made in,
 * and tells nothing of it but by a clone. A child enters the namespace for that (child.h).
 */
#define _GNU_SOURCE
#include "kernel.h"

#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "child.h"
#include "syscalls.h"

/* The mount namespaces that are tried. */
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
 * --- a look at a tree: a clone is attached where nobody else sees it ---
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
	struct uapi_mnt_id_req req = { .size = sizeof(req) };
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
		if (view->size < sizeof(struct uapi_statmount)) /* it would be cut off unsaid */
			return -EOVERFLOW;
		err = sys_statmount_in_ns(ids[view->count], 0, view->mask, view->buf, view->size);
		if (err)
			return err;
		/* Strings are in between, so it need not be aligned. */
		memcpy(&used, view->buf + offsetof(struct uapi_statmount, size), sizeof(used));
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
