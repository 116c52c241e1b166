/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * System calls that the C library may not know: the numbers of the kernel's uapi headers, repeated
 * for the same reason as the structures of uapi.h. From 424 on the numbers of calls are the same
 * on all processors that steer.c knows.
 */
#ifndef CRIU_DETACHED_SYSCALLS_H
#define CRIU_DETACHED_SYSCALLS_H

#include <errno.h>
#include <linux/ioctl.h>
#include <linux/sockios.h>
#include <sys/syscall.h>

#include "uapi.h"

#define NR_open_tree 428
#define NR_move_mount 429
#define NR_fsopen 430
#define NR_fsconfig 431
#define NR_fsmount 432
#define NR_fspick 433
#define NR_openat2 437
#define NR_pidfd_open 434
#define NR_close_range 436
#define NR_pidfd_getfd 438
#define NR_mount_setattr 442
#define NR_statmount 457
#define NR_listmount 458

#define OPEN_TREE_CLONE_ 1
#define AT_RECURSIVE_ 0x8000

#define SIOCUNIXFILE_ (SIOCPROTOPRIVATE + 0)			 /* linux/un.h */
#define PROCMAP_QUERY_ _IOWR('f', 17, struct uapi_procmap_query) /* linux/fs.h */

/** or_errno - what a call returned, or -errno */
static inline int or_errno(long result)
{
	return result < 0 ? -errno : (int)result;
}

#endif
