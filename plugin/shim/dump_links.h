/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The link of each file that CRIU dumps: fds, working directories, roots, executables and
 * mappings alike. It is read just before CRIU looks for the file's external key.
 */
#ifndef CRIU_DETACHED_DUMP_LINKS_H
#define CRIU_DETACHED_DUMP_LINKS_H

#include <stdbool.h>

#include "kernel/facts.h"

/** dump_links_init - steer readlink; 0, or -1 when it can't be (see steer_main_program) */
int dump_links_init(void);

/**
 * on_kernel_shmem - is it a memfd, SysV shm or shared anonymous memory?
 *
 * They live on a tmpfs mount of the kernel's own and have links that start with '/'. To know
 * its device keeps Python out of such dumps.
 */
bool on_kernel_shmem(const struct file_facts *facts);

#endif
