// SPDX-License-Identifier: GPL-2.0-only
/* Mounts: what the kernel says of them, making, attaching and changing them; namespaces' ids. */
#define _GNU_SOURCE
#include "kernel.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "syscalls.h"

#ifndef STATMOUNT_BY_FD /* sys/mount.h may have it */
#define STATMOUNT_BY_FD 1
#endif

int sys_statmount_by_fd(int fd, uint64_t mask, void *buf, size_t size)
{
	struct uapi_mnt_id_req req = { .size = sizeof(req), .mnt_fd = fd, .param = mask };

	return or_errno(syscall(NR_statmount, &req, buf, size, STATMOUNT_BY_FD));
}

int sys_statmount_in_ns(uint64_t mnt_id, uint64_t ns_id, uint64_t mask, void *buf, size_t size)
{
	struct uapi_mnt_id_req req = {
		.size = sizeof(req), .mnt_id = mnt_id, .param = mask, .mnt_ns_id = ns_id
	};

	return or_errno(syscall(NR_statmount, &req, buf, size, 0));
}

int sys_listmount(uint64_t ns_id, uint64_t after, uint64_t *mnt_ids, size_t count)
{
	struct uapi_mnt_id_req req = { .size = sizeof(req),
				       .mnt_id = UINT64_MAX /* LSMT_ROOT */,
				       .param = after,
				       .mnt_ns_id = ns_id };

	return or_errno(syscall(NR_listmount, &req, mnt_ids, count, 0));
}

#ifndef STATX_MNT_ID_UNIQUE
#define STATX_MNT_ID_UNIQUE 0x00004000U /* Linux 6.8 */
#endif

int sys_mnt_id_unique(int fd, uint64_t *mnt_id)
{
	struct statx stx;

	if (statx(fd, "", AT_EMPTY_PATH, STATX_MNT_ID_UNIQUE, &stx))
		return -errno;
	if (!(stx.stx_mask & STATX_MNT_ID_UNIQUE))
		return -EOPNOTSUPP;
	*mnt_id = stx.stx_mnt_id;
	return 0;
}

int sys_open_tree(int dirfd, const char *path, unsigned int flags)
{
	return or_errno(syscall(NR_open_tree, dirfd, path, flags));
}

int sys_mount_setattr(int fd, const struct uapi_mount_attr *attr)
{
	return or_errno(syscall(NR_mount_setattr, fd, "", AT_EMPTY_PATH, attr, sizeof(*attr)));
}

int sys_move_mount(int tree, int target)
{
	return or_errno(syscall(NR_move_mount, tree, "", target, "",
				0x44 /* MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH */));
}

int sys_fsopen(const char *fs_type)
{
	return or_errno(syscall(NR_fsopen, fs_type, 1 /* FSOPEN_CLOEXEC */));
}

int sys_fsconfig(int fd, unsigned int command, const char *key, const char *value)
{
	return or_errno(syscall(NR_fsconfig, fd, command, key, value, 0));
}

int sys_fsconfig_fd(int fd, const char *key, int value)
{
	return or_errno(syscall(NR_fsconfig, fd, 5 /* FSCONFIG_SET_FD */, key, NULL, value));
}

int sys_fsmount(int fd, unsigned int attr)
{
	return or_errno(syscall(NR_fsmount, fd, 1 /* FSMOUNT_CLOEXEC */, attr));
}

int sys_fspick(int fd)
{
	return or_errno(syscall(NR_fspick, fd, "", 0x9 /* FSPICK_CLOEXEC | FSPICK_EMPTY_PATH */));
}

/* linux/nsfs.h, Linux 6.12 */
#define NS_MNT_GET_INFO_ _IOR(0xb7, 10, struct uapi_mnt_ns_info)
#define NS_MNT_GET_NEXT_ _IOR(0xb7, 11, struct uapi_mnt_ns_info)
#define NS_MNT_GET_PREV_ _IOR(0xb7, 12, struct uapi_mnt_ns_info)

int sys_next_mount_ns(int ns_fd, int backwards, uint64_t *ns_id)
{
	struct uapi_mnt_ns_info info = { .size = sizeof(info) };
	int fd = ioctl(ns_fd, backwards ? NS_MNT_GET_PREV_ : NS_MNT_GET_NEXT_, &info);

	if (fd < 0)
		return -errno;
	*ns_id = info.mnt_ns_id;
	return fd;
}

int sys_mount_ns_id(int ns_fd, uint64_t *ns_id)
{
	struct uapi_mnt_ns_info info = { .size = sizeof(info) };

	if (ioctl(ns_fd, NS_MNT_GET_INFO_, &info))
		return -errno;
	*ns_id = info.mnt_ns_id;
	return 0;
}
