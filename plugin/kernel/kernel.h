/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Linux system calls that Python's os lacks: the C side of criu_detached/kernel/, which has
 * their sources and kernel versions. kernel_build.py gives these declarations to cffi.
 *
 * Where nothing else is said each returns a new fd, a count or 0; on failure -errno.
 */
#ifndef CRIU_DETACHED_KERNEL_H
#define CRIU_DETACHED_KERNEL_H

#include "facts.h"
#include "uapi.h"

#include <stddef.h>
#include <stdint.h>

/* --- files (files.c) --- */

int sys_openat2(int dirfd, const char *path, uint64_t flags, uint64_t resolve);
/* Facts of what is at a path, the last component not followed; and of what was opened. */
int sys_stat_beneath(int dirfd, const char *path, uint64_t resolve, struct file_facts *out);
int sys_open_beneath(int dirfd, const char *path, uint64_t flags, uint64_t resolve,
		     struct file_facts *out);
int sys_fstat(int fd, struct file_facts *out);
/* F_GETFL. */
int sys_file_flags(int fd);
/* Magic number, filesystem id, flags. */
int sys_fstatfs(int fd, uint64_t *out);
/* A handle has 128 bytes at most. */
int sys_file_handle(int fd, int flags, int *type, unsigned char *handle, unsigned int *size);
int sys_open_by_handle(int mount_fd, int type, const unsigned char *handle, unsigned int size,
		       int flags);
/* The device number of the superblock, which that of a file need not be. */
int sys_superblock_dev(int fd, uint64_t *dev);
/* 1 when two open files are one inode, else 0, whatever their numbers. */
int sys_is_same_inode(int fd, int other);
/* 16 bytes at most; returns how many. */
int sys_fs_uuid(int fd, unsigned char *uuid);

/* --- other tasks, and unix sockets (tasks.c) --- */

int sys_pidfd_getfd(int pidfd, int fd);
/* 1 when one of this process's unix sockets is connected to a name that ends so, else 0. */
int sys_has_peer(const char *end);
/*
 * An O_PATH fd of the file that another process's unix socket is bound to; -ENOENT where its name
 * is not the given one, if that is not empty.
 */
int sys_bound_file(int pid_fd, int fd, const char *name);
/* 0 when two tasks share what the type names, else another number. */
int sys_kcmp(int tid, int other, int type);

/* --- mounts and new filesystems (mounts.c) --- */

int sys_statmount_by_fd(int fd, uint64_t mask, void *buf, size_t size);
int sys_statmount_in_ns(uint64_t mnt_id, uint64_t ns_id, uint64_t mask, void *buf, size_t size);
/* Mount ids in a namespace after one of them, in the order of the ids; 0: from the first one. */
int sys_listmount(uint64_t ns_id, uint64_t after, uint64_t *mnt_ids, size_t count);
int sys_mnt_id_unique(int fd, uint64_t *mnt_id);
int sys_next_mount_ns(int ns_fd, int backwards, uint64_t *ns_id);
int sys_mount_ns_id(int ns_fd, uint64_t *ns_id);
int sys_open_tree(int dirfd, const char *path, unsigned int flags);
int sys_mount_setattr(int fd, const struct uapi_mount_attr *attr);
int sys_move_mount(int tree, int target);
int sys_fsopen(const char *fs_type);
int sys_fsconfig(int fd, unsigned int command, const char *key, const char *value);
int sys_fsconfig_fd(int fd, const char *key, int value);
int sys_fsmount(int fd, unsigned int attr);
int sys_fspick(int fd);

/* --- in another mount namespace, for a moment (visits.c) --- */

int sys_clone_mount_visiting(int ns_fd, int own_ns_fd, int fd);
int sys_attach_visiting(int ns_fd, int own_ns_fd, int tree, int target);
/* A mount namespace for this process alone; place is three fds to come back to. */
int sys_enter_private_ns(int *place);
int sys_leave_private_ns(const int *place);

/* --- by a child (children.c) --- */

/*
 * Can the mount be cloned in a mount namespace, by who is in a user namespace (-1: this one), and
 * the clone be given attributes?
 */
int sys_dry_run_clone(int ns_fd, int user_ns_fd, int fd, const struct uapi_mount_attr *attr);
/* A tmpfs that has nothing but the procfs, mounted at a name. */
int sys_root_with_proc(const char *name);
/* A user namespace with the given maps. */
int sys_userns(const char *uid_map, const char *gid_map);

/*
 * --- anonymous mounts, by a child (anonymous.c) ---
 *
 * -EINVAL: the kernel clones the mount in none of these namespaces.
 */

/*
 * What statmount(2) says of the mounts of an anonymous tree, one after another in buf; returns
 * how many.
 */
int sys_view_clone(const int *ns_fds, int count, int fd, uint64_t mask, void *buf, size_t size);
/* A clone of the one mount, without what is mounted below. */
int sys_clone_in_one_of(const int *ns_fds, int count, int fd);

/* --- libblkid (blkid.c) --- */

/*
 * What it finds in a device or an image at an offset: type, UUID and UUID_SUB, of 64 bytes
 * each. -ELIBACC: the library is missing; -ENODATA: it finds nothing, or more than one.
 */
int blkid_probe(int fd, uint64_t offset, char *values);

#endif
