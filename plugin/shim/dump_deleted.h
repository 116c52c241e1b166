/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Deleted files on mounts that CRIU knows. It recreates them as well (dump_ghost_remap,
 * criu/files-reg.c), so one that a detached mount shows too would come back as two. CRIU reads the
 * links of all that it dumps, also of files in flight, which no process shows.
 */
#ifndef CRIU_DETACHED_DUMP_DELETED_H
#define CRIU_DETACHED_DUMP_DELETED_H

#include <stddef.h>

#include "kernel/facts.h"

/**
 * deleted_file_left - take note of a file on a known mount, if it is deleted
 * @link: of the file
 *
 * Return: 0, or -1 without memory.
 */
int deleted_file_left(const char *link, const struct file_facts *facts);

/** deleted_files_left - those that were noted; @count: how many */
const struct file_facts *deleted_files_left(size_t *count);

/** deleted_files_reset - forget them */
void deleted_files_reset(void);

#endif
