/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * System calls that the C library may not know: numbers and structures of the kernel's uapi
 * headers, repeated here because those of a build machine may be older than the kernel that
 * runs. From 424 on the numbers are the same on all processors that steer.c knows.
 */
#ifndef CRIU_DETACHED_SYSCALLS_H
#define CRIU_DETACHED_SYSCALLS_H

#include <errno.h>
#include <linux/sockios.h>
#include <stdint.h>
#include <sys/syscall.h>

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

#define OPEN_TREE_CLONE_ 1
#define AT_RECURSIVE_ 0x8000

#define SIOCUNIXFILE_ (SIOCPROTOPRIVATE + 0) /* linux/un.h */

/* linux/openat2.h: struct open_how, OPEN_HOW_SIZE_VER0 = 24 */
struct open_how_ver0 {
	uint64_t flags, mode, resolve;
};

/* linux/mount.h: struct mnt_id_req, MNT_ID_REQ_SIZE_VER1 = 32 */
struct mnt_id_req_ver1 {
	uint32_t size;
	uint32_t fd; /* Linux 7.0, with STATMOUNT_BY_FD; "spare" before */
	uint64_t mnt_id;
	uint64_t param;
	uint64_t mnt_ns_id;
};

/** or_errno - what a call returned, or -errno */
static inline int or_errno(long result)
{
	return result < 0 ? -errno : (int)result;
}

#endif
