// SPDX-License-Identifier: GPL-2.0-only
/* Files: opening one, and what the kernel says of it and of its filesystem. */
#define _GNU_SOURCE
#include "kernel.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "syscalls.h"

int sys_openat2(int dirfd, const char *path, uint64_t flags, uint64_t resolve)
{
	struct uapi_open_how how = { .flags = flags, .resolve = resolve };

	return or_errno(syscall(NR_openat2, dirfd, path, &how, sizeof(how)));
}

int sys_fstatfs(int fd, uint64_t *out)
{
	struct statfs fs;

	if (fstatfs(fd, &fs))
		return -errno;
	out[0] = (unsigned long)fs.f_type;
	memcpy(&out[1], &fs.f_fsid, sizeof(out[1]));
	out[2] = fs.f_flags;
	return 0;
}

int sys_fstat(int fd, struct file_facts *out)
{
	return or_errno(facts_of(fd, out));
}

int sys_file_flags(int fd)
{
	return or_errno(fcntl(fd, F_GETFL));
}

int sys_stat_beneath(int dirfd, const char *path, uint64_t resolve, struct file_facts *out)
{
	int err, fd = sys_openat2(dirfd, path, O_PATH | O_NOFOLLOW | O_CLOEXEC, resolve);

	if (fd < 0)
		return fd;
	err = sys_fstat(fd, out);
	close(fd);
	return err;
}

int sys_open_beneath(int dirfd, const char *path, uint64_t flags, uint64_t resolve,
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

int sys_file_handle(int fd, int flags, int *type, unsigned char *handle, unsigned int *size)
{
	struct uapi_file_handle h = { .handle_bytes = sizeof(h.f_handle) };
	int mnt_id;

	if (syscall(SYS_name_to_handle_at, fd, "", &h, &mnt_id, AT_EMPTY_PATH | flags))
		return -errno;
	*type = h.handle_type;
	*size = h.handle_bytes;
	memcpy(handle, h.f_handle, h.handle_bytes);
	return 0;
}

int sys_open_by_handle(int mount_fd, int type, const unsigned char *handle, unsigned int size,
		       int flags)
{
	struct uapi_file_handle h = { .handle_bytes = size, .handle_type = type };

	if (size > sizeof(h.f_handle))
		return -EINVAL;
	memcpy(h.f_handle, handle, size);
	return or_errno(syscall(SYS_open_by_handle_at, mount_fd, &h, flags));
}

/* The kernel's dev_t as makedev() makes it (MAJOR and MINOR, include/linux/kdev_t.h). */
static uint64_t kdev_decode(unsigned int number)
{
	return makedev(number >> 20, number & 0xfffff);
}

/*
 * One inotify instance for all that watches tell. It is never closed: the kernel waits 10 ms for
 * the end of its watches (fsnotify_destroy_group, fs/notify/group.c).
 */
static int watcher = -1;

/* The watch of a file, for an event that is of no interest. */
static int add_watch(int fd)
{
	char path[64];

	if (watcher < 0)
		watcher = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
	if (watcher < 0)
		return -errno;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return or_errno(inotify_add_watch(watcher, path, IN_DELETE_SELF));
}

static void remove_watch(int watch)
{
	struct inotify_event event;

	inotify_rm_watch(watcher, watch);
	while (read(watcher, &event, sizeof(event)) > 0)
		; /* IN_IGNORED */
}

/* The superblock of the one watch that there is (fs/notify/fdinfo.c). */
static int dev_of_watch(uint64_t *dev)
{
	char text[1024], *found;
	unsigned int number;
	ssize_t size;
	int fd;

	snprintf(text, sizeof(text), "/proc/self/fdinfo/%d", watcher);
	fd = open(text, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	size = read(fd, text, sizeof(text) - 1);
	close(fd);
	text[size > 0 ? size : 0] = '\0';
	found = strstr(text, " sdev:");
	if (!found || sscanf(found, " sdev:%x", &number) != 1)
		return -EOPNOTSUPP;
	*dev = kdev_decode(number);
	return 0;
}

int sys_superblock_dev(int fd, uint64_t *dev)
{
	int watch = add_watch(fd), err;

	if (watch < 0)
		return watch;
	err = dev_of_watch(dev);
	remove_watch(watch);
	return err;
}

/* There is one watch for each inode (inotify_update_watch, fs/notify/inotify/inotify_user.c). */
int sys_is_same_inode(int fd, int other)
{
	int watch = add_watch(fd), another;

	if (watch < 0)
		return watch;
	another = add_watch(other);
	remove_watch(watch);
	if (another >= 0 && another != watch)
		remove_watch(another);
	return another < 0 ? another : another == watch;
}

#define FS_IOC_GETFSUUID_ _IOR(0x15, 0, struct uapi_fsuuid2) /* linux/fs.h */

int sys_fs_uuid(int fd, unsigned char *uuid)
{
	struct uapi_fsuuid2 u = { 0 };

	if (ioctl(fd, FS_IOC_GETFSUUID_, &u))
		return -errno;
	memcpy(uuid, u.uuid, sizeof(u.uuid));
	return u.len;
}
