/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The fast path of a dump, in CRIU's process. criu_detached/dump/ adds the mounts that it has
 * recorded, and writes the records that are pending here; entry.c asks about each link.
 */
#ifndef CRIU_DETACHED_PLAIN_FILES_H
#define CRIU_DETACHED_PLAIN_FILES_H

#include "kernel/facts.h"

#include <stddef.h>

/**
 * plain_mount_add - let the plain files of a recorded mount be taken here
 * @mnt_id: the detached mount
 * @root: fd of its root as the bind source shows it; it must stay open
 * @source_mnt_id: the bind source's mount
 * @compare_owner: a file must have the same owner there
 *
 * Return: 0, or -1 without memory.
 */
int plain_mount_add(uint32_t mnt_id, int root, uint32_t source_mnt_id, int compare_owner);

/**
 * plain_file_take - record a file, if there is nothing to decide about it
 * @link: its link, which starts with '/'
 * @facts: of the file
 *
 * Takes a regular file of one name, beneath the root of a mount that was added, which
 * the bind source shows at the same path; and every further fd of a file that has a
 * record with the same path.
 *
 * Return: whether it is recorded; if not, it is for Python to decide.
 */
bool plain_file_take(const char *link, const struct file_facts *facts);

/**
 * plain_files_pending - the records that were made, ready for the record file
 * @size: of them, in bytes
 * @entries: how many
 */
const uint8_t *plain_files_pending(size_t *size, unsigned int *entries);

/** plain_files_written - drop the pending records: they are in the record file */
void plain_files_written(void);

/** plain_files_reset - drop mounts and pending records: another dump begins */
void plain_files_reset(void);

#endif
