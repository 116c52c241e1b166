# SPDX-License-Identifier: GPL-2.0-only
"""The cffi module ``criu_detached._kernel``: Linux system calls that Python's os lacks.

Structures and numbers are those of the kernel's uapi headers, repeated here because
the C library's headers of a build machine may be older than the kernel that runs.
"""

from __future__ import annotations

from cffi import FFI

MODULE = "criu_detached._kernel"

CDEF = """
struct file_facts {
    uint64_t dev;
    uint64_t ino;
    uint64_t rdev;
    uint64_t size;
    uint32_t mnt_id;
    uint32_t mode;
    uint32_t nlink;
    uint32_t uid;
    uint32_t gid;
    uint32_t attributes;
};

/* Each returns a new fd, a count or 0; on failure -errno. */
int sys_statmount_by_fd(int fd, uint64_t mask, void *buf, size_t size);
int sys_statmount_in_ns(uint64_t mnt_id, uint64_t ns_id, uint64_t mask, void *buf, size_t size);
int sys_listmount(uint64_t ns_id, uint64_t after, uint64_t *mnt_ids, size_t count);
int sys_mnt_id_unique(int fd, uint64_t *mnt_id);
int sys_open_tree(int dirfd, const char *path, unsigned int flags);
int sys_mount_setattr(int fd, uint64_t set, uint64_t clear, uint64_t propagation, int userns_fd);
int sys_openat2(int dirfd, const char *path, uint64_t flags, uint64_t resolve);
int sys_stat_beneath(int dirfd, const char *path, uint64_t resolve, struct file_facts *out);
int sys_open_beneath(int dirfd, const char *path, uint64_t flags, uint64_t resolve,
                     struct file_facts *out);
int sys_fstatfs(int fd, uint64_t *out);
int sys_fstat(int fd, struct file_facts *out);
int sys_file_handle(int fd, int flags, int *type, unsigned char *handle, unsigned int *size);
int sys_open_by_handle(int mount_fd, int type, const unsigned char *handle, unsigned int size,
                       int flags);
int sys_pidfd_getfd(int pidfd, int fd);
int sys_superblock_dev(int fd, uint64_t *dev);
int sys_fs_uuid(int fd, unsigned char *uuid);
int sys_next_mount_ns(int ns_fd, int backwards, uint64_t *ns_id);
int sys_mount_ns_id(int ns_fd, uint64_t *ns_id);
int sys_peer_path(int fd, char *path, size_t size);
int sys_bound_file(int pid_fd, int fd);
int sys_rehearse_clone(int ns_fd, int user_ns_fd, int fd, uint64_t set, uint64_t clear,
                       int userns_fd);
int sys_clone_mount_visiting(int ns_fd, int own_ns_fd, int fd);
int sys_attach_visiting(int ns_fd, int own_ns_fd, int tree, int target);
int sys_view_clone(const int *ns_fds, int count, int fd, uint64_t mask, void *buf, size_t size);
int sys_clone_in_one_of(const int *ns_fds, int count, int fd);
int sys_userns(const char *uid_map, const char *gid_map);
int sys_enter_private_ns(int *place);
int sys_leave_private_ns(const int *place);
int sys_fsopen(const char *fs_type);
int sys_fsconfig(int fd, unsigned int command, const char *key, const char *value);
int sys_fsconfig_fd(int fd, const char *key, int value);
int sys_fsmount(int fd, unsigned int attr);
int sys_fspick(int fd);
int sys_move_mount(int tree, int target);
int sys_root_with_proc(const char *name);
int blkid_probe(int fd, uint64_t offset, char *values);
"""

SOURCE = r"""
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "facts.h"

#define NR_open_tree 428
#define NR_move_mount 429
#define NR_fsopen 430
#define NR_fsconfig 431
#define NR_fsmount 432
#define NR_fspick 433
#define NR_openat2 437
#define NR_pidfd_getfd 438
#define NR_mount_setattr 442
#define NR_statmount 457
#define NR_listmount 458

#define SIOCUNIXFILE_ (SIOCPROTOPRIVATE + 0) /* linux/un.h */

#define ret(call) ({ long r = (call); r < 0 ? -errno : (int)r; })

/* linux/mount.h: struct mnt_id_req, MNT_ID_REQ_SIZE_VER1 = 32 */
struct mnt_id_req_ver1 {
	uint32_t size;
	uint32_t fd; /* Linux 7.0, with STATMOUNT_BY_FD; "spare" before */
	uint64_t mnt_id;
	uint64_t param;
	uint64_t mnt_ns_id;
};
#ifndef STATMOUNT_BY_FD /* sys/mount.h may have it */
#define STATMOUNT_BY_FD 1
#endif

static int sys_statmount_by_fd(int fd, uint64_t mask, void *buf, size_t size)
{
	struct mnt_id_req_ver1 req = { .size = sizeof(req), .fd = fd, .param = mask };

	return ret(syscall(NR_statmount, &req, buf, size, STATMOUNT_BY_FD));
}

static int sys_statmount_in_ns(uint64_t mnt_id, uint64_t ns_id, uint64_t mask, void *buf,
			       size_t size)
{
	struct mnt_id_req_ver1 req = {
		.size = sizeof(req), .mnt_id = mnt_id, .param = mask, .mnt_ns_id = ns_id
	};

	return ret(syscall(NR_statmount, &req, buf, size, 0));
}

/* All mounts of a namespace, from the one after another. */
static int sys_listmount(uint64_t ns_id, uint64_t after, uint64_t *mnt_ids, size_t count)
{
	struct mnt_id_req_ver1 req = { .size = sizeof(req),
				       .mnt_id = UINT64_MAX /* LSMT_ROOT */,
				       .param = after,
				       .mnt_ns_id = ns_id };

	return ret(syscall(NR_listmount, &req, mnt_ids, count, 0));
}

#ifndef STATX_MNT_ID_UNIQUE
#define STATX_MNT_ID_UNIQUE 0x00004000U /* Linux 6.8 */
#endif

static int sys_mnt_id_unique(int fd, uint64_t *mnt_id)
{
	struct statx stx;

	if (statx(fd, "", AT_EMPTY_PATH, STATX_MNT_ID_UNIQUE, &stx))
		return -errno;
	if (!(stx.stx_mask & STATX_MNT_ID_UNIQUE))
		return -EOPNOTSUPP;
	*mnt_id = stx.stx_mnt_id;
	return 0;
}

static int sys_open_tree(int dirfd, const char *path, unsigned int flags)
{
	return ret(syscall(NR_open_tree, dirfd, path, flags));
}

/* linux/mount.h: struct mount_attr, MOUNT_ATTR_SIZE_VER0 = 32 */
struct mount_attr_ver0 {
	uint64_t attr_set, attr_clr, propagation, userns_fd;
};

static int sys_mount_setattr(int fd, uint64_t set, uint64_t clear, uint64_t propagation,
			     int userns_fd)
{
	struct mount_attr_ver0 attr = { set, clear, propagation, userns_fd < 0 ? 0 : userns_fd };

	return ret(syscall(NR_mount_setattr, fd, "", AT_EMPTY_PATH, &attr, sizeof(attr)));
}

/* linux/openat2.h: struct open_how, OPEN_HOW_SIZE_VER0 = 24 */
struct open_how_ver0 {
	uint64_t flags, mode, resolve;
};

static int sys_openat2(int dirfd, const char *path, uint64_t flags, uint64_t resolve)
{
	struct open_how_ver0 how = { .flags = flags, .resolve = resolve };

	return ret(syscall(NR_openat2, dirfd, path, &how, sizeof(how)));
}

static int sys_fstatfs(int fd, uint64_t *out)
{
	struct statfs fs;

	if (fstatfs(fd, &fs))
		return -errno;
	out[0] = (unsigned long)fs.f_type;
	memcpy(&out[1], &fs.f_fsid, sizeof(out[1]));
	out[2] = fs.f_flags;
	return 0;
}

static int sys_fstat(int fd, struct file_facts *out)
{
	return ret(facts_of(fd, out));
}

static int sys_stat_beneath(int dirfd, const char *path, uint64_t resolve, struct file_facts *out)
{
	int err, fd = sys_openat2(dirfd, path, O_PATH | O_NOFOLLOW | O_CLOEXEC, resolve);

	if (fd < 0)
		return fd;
	err = sys_fstat(fd, out);
	close(fd);
	return err;
}

static int sys_open_beneath(int dirfd, const char *path, uint64_t flags, uint64_t resolve,
			    struct file_facts *out)
{
	int err, fd = sys_openat2(dirfd, path, flags, resolve);

	if (fd < 0)
		return fd;
	err = sys_fstat(fd, out);
	if (err) {
		close(fd);
		return err;
	}
	return fd;
}

/* fcntl.h: struct file_handle with MAX_HANDLE_SZ bytes */
struct handle {
	unsigned int handle_bytes;
	int handle_type;
	unsigned char f_handle[128];
};

static int sys_file_handle(int fd, int flags, int *type, unsigned char *handle,
			   unsigned int *size)
{
	struct handle h = { .handle_bytes = sizeof(h.f_handle) };
	int mnt_id;

	if (syscall(SYS_name_to_handle_at, fd, "", &h, &mnt_id, AT_EMPTY_PATH | flags))
		return -errno;
	*type = h.handle_type;
	*size = h.handle_bytes;
	memcpy(handle, h.f_handle, h.handle_bytes);
	return 0;
}

static int sys_open_by_handle(int mount_fd, int type, const unsigned char *handle,
			      unsigned int size, int flags)
{
	struct handle h = { .handle_bytes = size, .handle_type = type };

	if (size > sizeof(h.f_handle))
		return -EINVAL;
	memcpy(h.f_handle, handle, size);
	return ret(syscall(SYS_open_by_handle_at, mount_fd, &h, flags));
}

static int sys_pidfd_getfd(int pidfd, int fd)
{
	return ret(syscall(NR_pidfd_getfd, pidfd, fd, 0));
}

/* A watch of no event, of which fdinfo shows the superblock (fs/notify/fdinfo.c). */
static int sys_superblock_dev(int fd, uint64_t *dev)
{
	char text[1024], *found;
	unsigned int number;
	ssize_t size;
	int inotify, err = -EOPNOTSUPP;

	inotify = inotify_init1(IN_CLOEXEC);
	if (inotify < 0)
		return -errno;
	snprintf(text, sizeof(text), "/proc/self/fd/%d", fd);
	if (inotify_add_watch(inotify, text, IN_DELETE_SELF) < 0) {
		err = -errno;
		goto out;
	}
	snprintf(text, sizeof(text), "/proc/self/fdinfo/%d", inotify);
	fd = open(text, O_RDONLY | O_CLOEXEC);
	if (fd < 0) {
		err = -errno;
		goto out;
	}
	size = read(fd, text, sizeof(text) - 1);
	close(fd);
	text[size > 0 ? size : 0] = '\0';
	found = strstr(text, " sdev:");
	if (found && sscanf(found, " sdev:%x", &number) == 1) {
		*dev = makedev(number >> 20, number & 0xfffff);
		err = 0;
	}
out:
	close(inotify);
	return err;
}

/* linux/fs.h: FS_IOC_GETFSUUID, Linux 6.9 */
struct fsuuid2_ver0 {
	uint8_t len;
	uint8_t uuid[16];
};

static int sys_fs_uuid(int fd, unsigned char *uuid)
{
	struct fsuuid2_ver0 u = { 0 };

	if (ioctl(fd, _IOR(0x15, 0, struct fsuuid2_ver0), &u))
		return -errno;
	memcpy(uuid, u.uuid, sizeof(u.uuid));
	return u.len;
}

/* linux/nsfs.h, Linux 6.12 */
struct mnt_ns_info_ver0 {
	uint32_t size;
	uint32_t nr_mounts;
	uint64_t mnt_ns_id;
};
#define NS_MNT_GET_INFO_ _IOR(0xb7, 10, struct mnt_ns_info_ver0)
#define NS_MNT_GET_NEXT_ _IOR(0xb7, 11, struct mnt_ns_info_ver0)
#define NS_MNT_GET_PREV_ _IOR(0xb7, 12, struct mnt_ns_info_ver0)

static int sys_next_mount_ns(int ns_fd, int backwards, uint64_t *ns_id)
{
	struct mnt_ns_info_ver0 info = { .size = sizeof(info) };
	int fd = ioctl(ns_fd, backwards ? NS_MNT_GET_PREV_ : NS_MNT_GET_NEXT_, &info);

	if (fd < 0)
		return -errno;
	*ns_id = info.mnt_ns_id;
	return fd;
}

static int sys_mount_ns_id(int ns_fd, uint64_t *ns_id)
{
	struct mnt_ns_info_ver0 info = { .size = sizeof(info) };

	if (ioctl(ns_fd, NS_MNT_GET_INFO_, &info))
		return -errno;
	*ns_id = info.mnt_ns_id;
	return 0;
}

static int sys_peer_path(int fd, char *path, size_t size)
{
	struct sockaddr_un addr = { 0 };
	socklen_t len = sizeof(addr);

	if (getpeername(fd, (struct sockaddr *)&addr, &len))
		return -errno;
	if (addr.sun_family != AF_UNIX)
		return -EAFNOSUPPORT;
	snprintf(path, size, "%.*s", (int)sizeof(addr.sun_path), addr.sun_path);
	return 0;
}

/* An O_PATH fd of the file that another process's unix socket is bound to. */
static int sys_bound_file(int pid_fd, int fd)
{
	int file, sk = syscall(NR_pidfd_getfd, pid_fd, fd, 0), domain = 0;
	socklen_t len = sizeof(domain);

	if (sk < 0)
		return -errno;
	/* Sockets of other families have requests of the same number. */
	if (getsockopt(sk, SOL_SOCKET, SO_DOMAIN, &domain, &len))
		file = -errno;
	else
		file = domain == AF_UNIX ? ret(ioctl(sk, SIOCUNIXFILE_)) : -EAFNOSUPPORT;
	close(sk);
	return file;
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

/*
 * A child that sends no SIGCHLD when it ends: CRIU's handler of that signal takes every
 * child that ends for a task that was lost (sigchld_handler, criu/parasite-syscall.c).
 */
static pid_t lone_child(unsigned long flags)
{
	return syscall(SYS_clone, flags, 0, 0, 0, 0);
}

#define OPEN_TREE_CLONE_ 1
#define AT_RECURSIVE_ 0x8000
#define MAX_VIEW 1024 /* mounts of one tree */

/* Tried in a child: setns(2) would change this process's root, directory and privileges. */
static int sys_rehearse_clone(int ns_fd, int user_ns_fd, int fd, uint64_t set, uint64_t clear,
			      int userns_fd)
{
	int status, tree;
	pid_t pid = lone_child(0);

	if (pid < 0)
		return -errno;
	if (pid == 0) {
		if (setns(ns_fd, CLONE_NEWNS) || (user_ns_fd >= 0 && setns(user_ns_fd, CLONE_NEWUSER)))
			_exit(errno);
		tree = sys_open_tree(fd, "", AT_EMPTY_PATH | OPEN_TREE_CLONE_);
		if (tree < 0)
			_exit(-tree);
		_exit(set | clear ? -sys_mount_setattr(tree, set, clear, 0, userns_fd) : 0);
	}
	if (waitpid(pid, &status, __WALL) != pid || !WIFEXITED(status))
		return -ECHILD;
	return -WEXITSTATUS(status);
}

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

static int sys_clone_mount_visiting(int ns_fd, int own_ns_fd, int fd)
{
	return visit(ns_fd, own_ns_fd, clone_here, fd, -1);
}

static int sys_move_mount(int tree, int target)
{
	return ret(syscall(NR_move_mount, tree, "", target, "",
			   0x44 /* MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH */));
}

static int sys_attach_visiting(int ns_fd, int own_ns_fd, int tree, int target)
{
	return visit(ns_fd, own_ns_fd, sys_move_mount, tree, target);
}

/*
 * A mount namespace for this process alone, until it leaves. The place to come back to:
 * namespace, root and directory, for setns(2) changes the last two.
 */
static int sys_leave_private_ns(const int *place)
{
	int err = 0;

	if (place[0] >= 0 &&
	    (setns(place[0], CLONE_NEWNS) || fchdir(place[1]) || chroot(".") || fchdir(place[2])))
		err = -errno;
	for (int i = 0; i < 3; i++)
		if (place[i] >= 0)
			close(place[i]);
	return err;
}

static int sys_enter_private_ns(int *place)
{
	int err = 0;

	place[0] = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC);
	place[1] = open("/", O_PATH | O_CLOEXEC);
	place[2] = open(".", O_PATH | O_CLOEXEC);
	if (place[0] < 0 || place[1] < 0 || place[2] < 0 || unshare(CLONE_NEWNS)) {
		err = -errno;
		for (int i = 0; i < 3; i++)
			if (place[i] >= 0)
				close(place[i]);
		return err;
	}
	if (syscall(SYS_mount, NULL, "/", NULL, 0x44000 /* MS_REC | MS_PRIVATE */, NULL)) {
		err = -errno;
		sys_leave_private_ns(place);
	}
	return err;
}

static int sys_fsopen(const char *fs_type)
{
	return ret(syscall(NR_fsopen, fs_type, 1 /* FSOPEN_CLOEXEC */));
}

static int sys_fsconfig(int fd, unsigned int command, const char *key, const char *value)
{
	return ret(syscall(NR_fsconfig, fd, command, key, value, 0));
}

static int sys_fsconfig_fd(int fd, const char *key, int value)
{
	return ret(syscall(NR_fsconfig, fd, 5 /* FSCONFIG_SET_FD */, key, NULL, value));
}

static int sys_fsmount(int fd, unsigned int attr)
{
	return ret(syscall(NR_fsmount, fd, 1 /* FSMOUNT_CLOEXEC */, attr));
}

static int sys_fspick(int fd)
{
	return ret(syscall(NR_fspick, fd, "", 0x9 /* FSPICK_CLOEXEC | FSPICK_EMPTY_PATH */));
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

	if (unshare(CLONE_NEWNS) ||
	    syscall(SYS_mount, NULL, "/", NULL, 0x44000 /* MS_REC | MS_PRIVATE */, NULL))
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
	return ret(
		syscall(NR_move_mount, tree, "", base, "tree", 4 /* MOVE_MOUNT_F_EMPTY_PATH */));
}

/* What is at the start of the memory that is shared with the child. */
struct view {
	int err, count;
};

static int fill_view(int tree, uint64_t mask, struct view *view, char *buf, size_t size)
{
	struct mnt_id_req_ver1 req = { .size = sizeof(req) };
	static uint64_t ids[MAX_VIEW];
	uint32_t used;
	int below, err = sys_mnt_id_unique(tree, &ids[0]);

	if (err)
		return err;
	req.mnt_id = ids[0];
	/* In the order in which they were made: a parent comes before its children. */
	below = ret(syscall(NR_listmount, &req, &ids[1], MAX_VIEW - 1, 0));
	if (below < 0)
		return below;
	if (below == MAX_VIEW - 1)
		return -E2BIG;
	for (view->count = 0; view->count <= below; view->count++) {
		err = sys_statmount_in_ns(ids[view->count], 0, mask, buf, size);
		if (err)
			return err;
		memcpy(&used, buf, sizeof(used)); /* the size is the first field */
		buf += used;
		size -= used;
	}
	return 0;
}

/*
 * statmount(2) tells of an anonymous mount nothing at all. So a clone of its tree is looked
 * at, which a child attaches where nobody else sees it: the answers for the mounts of the
 * tree follow one another in buf. Returns how many they are; -EINVAL when the kernel clones
 * the mount in none of these namespaces.
 */
static int sys_view_clone(const int *ns_fds, int count, int fd, uint64_t mask, void *buf,
			  size_t size)
{
	size_t room = sizeof(struct view) + size;
	struct view *view = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
				 -1, 0);
	int result, status, tree;
	pid_t pid;

	if (view == MAP_FAILED)
		return -errno;
	view->err = -ECHILD;
	pid = lone_child(0);
	if (pid == 0) {
		tree = clone_in_one_of(ns_fds, count, fd, AT_RECURSIVE_);
		view->err = tree < 0 ? tree : attach_privately(tree);
		if (!view->err)
			view->err = fill_view(tree, mask, view, (char *)(view + 1), size);
		_exit(0);
	}
	if (pid < 0)
		result = -errno;
	else if (waitpid(pid, &status, __WALL) != pid)
		result = -ECHILD;
	else
		result = view->err ? view->err : view->count;
	if (result > 0)
		memcpy(buf, view + 1, size);
	munmap(view, room);
	return result;
}

/* For a child that shares its parent's fds: what it puts in the place of one is the parent's. */
static int put_in_slot(int tree, int slot)
{
	if (tree < 0)
		return tree;
	return dup3(tree, slot, O_CLOEXEC) < 0 || close(tree) ? -errno : 0;
}

/* The fd in the slot when the child has put one there; else it is closed, and -errno. */
static int await_slot(pid_t pid, int slot)
{
	int status, err = 0;

	if (pid < 0)
		err = -errno;
	else if (waitpid(pid, &status, __WALL) != pid || !WIFEXITED(status))
		err = -ECHILD;
	else
		err = -WEXITSTATUS(status);
	if (!err)
		return slot;
	close(slot);
	return err;
}

/* Without what is mounted below; the tree fd is the caller's. */
static int sys_clone_in_one_of(const int *ns_fds, int count, int fd)
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
	tree = sys_open_tree(AT_FDCWD, ".", O_CLOEXEC | OPEN_TREE_CLONE_ | AT_RECURSIVE);
	return put_in_slot(tree, slot);
}

static int sys_root_with_proc(const char *name)
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

/*
 * What libblkid (libblkid/blkid.h) finds in a device or an image: type, UUID and UUID_SUB, of 64
 * bytes each. The library is there for this moment alone: a run that meets no such filesystem
 * does not load it, and nothing of it is left in a restored task. Python's ctypes would do the
 * same, but its import takes longer, and libffi leaves an fd open.
 */
static int blkid_probe(int fd, uint64_t offset, char *values)
{
	static const char *const names[] = { "TYPE", "UUID", "UUID_SUB" };
	void *(*new_probe)(void), *probe;
	int (*set_device)(void *, int, long long, long long);
	int (*do_safeprobe)(void *);
	int (*lookup_value)(void *, const char *, const char **, size_t *);
	void (*free_probe)(void *);
	void *lib = dlopen("libblkid.so.1", RTLD_NOW | RTLD_LOCAL);
	const char *value;
	int found = -ELIBACC;

	if (!lib)
		return -ELIBACC;
	new_probe = dlsym(lib, "blkid_new_probe");
	set_device = dlsym(lib, "blkid_probe_set_device");
	do_safeprobe = dlsym(lib, "blkid_do_safeprobe");
	lookup_value = dlsym(lib, "blkid_probe_lookup_value");
	free_probe = dlsym(lib, "blkid_free_probe");
	if (!new_probe || !set_device || !do_safeprobe || !lookup_value || !free_probe)
		goto out;
	found = -ENOMEM;
	probe = new_probe();
	if (!probe)
		goto out;
	/* 0: found; 1: nothing; -1: failed; -2: more than one filesystem */
	found = set_device(probe, fd, offset, 0) ? -EIO : do_safeprobe(probe) ? -ENODATA : 0;
	for (int i = 0; !found && i < 3; i++)
		if (!lookup_value(probe, names[i], &value, NULL))
			snprintf(values + 64 * i, 64, "%s", value);
	free_probe(probe);
out:
	dlclose(lib);
	return found;
}

/* A user namespace with the given maps lives as long as an fd of it: a child lends it. */
static int sys_userns(const char *uid_map, const char *gid_map)
{
	char path[64];
	pid_t pid;
	int fd = -1, err;

	pid = lone_child(CLONE_NEWUSER);
	if (pid < 0)
		return -errno;
	if (pid == 0)
		for (;;)
			pause();
	err = write_file(pid, "uid_map", uid_map);
	if (!err)
		err = write_file(pid, "gid_map", gid_map);
	if (!err) {
		snprintf(path, sizeof(path), "/proc/%d/ns/user", (int)pid);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		err = fd < 0 ? -errno : 0;
	}
	kill(pid, SIGKILL);
	waitpid(pid, NULL, __WALL);
	return err ? err : fd;
}
"""


def builder() -> FFI:
    """Describe ``criu_detached._kernel``; ``emit_c_code`` writes its C source."""
    ffi = FFI()
    ffi.cdef(CDEF)
    ffi.set_source(MODULE, SOURCE)
    return ffi
