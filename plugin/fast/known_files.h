/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The fast path of a restore. In CRIU's process criu_detached/restore/ tells it of the mounts and
 * has it index the records (known_index.c); in the tasks it opens files (known_files.c).
 */
#ifndef CRIU_DETACHED_KNOWN_FILES_H
#define CRIU_DETACHED_KNOWN_FILES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Where a task gets its fds from: functions of CRIU (struct criu_host of plugin/embed/host.h). */
struct fd_sources {
	int (*image_dir)(void);
	int (*fdstore_get)(int id);
	int (*inherit_fd_get)(const char *key);
};

/**
 * known_mount_add - say how a task gets at a mount; all come before known_files_load
 * @mnt_id: as in the records
 * @key: of the tree fd among CRIU's inherited fds; NULL when a task realises the mount
 * @shared: else the entry of shared.h that holds -1 until a task has realised the mount, then twice
 *          the tree fd's id in CRIU's fd store, plus one when inodes are kept
 * @keeps_inodes: for mounts with a key: superblock and root are the dumped ones, so inodes must
 *                be the same
 *
 * Return: 0, or -1 without memory.
 */
int known_mount_add(uint32_t mnt_id, const char *key, int shared, int keeps_inodes);

/**
 * known_files_load - index the File entries of a record file
 * @data: the file, its checksum verified; it must stay in place
 * @size: in bytes
 *
 * Return: how many there are, or -1 when anything about them is wrong: a damaged
 * message, a path that could leave its mount, a mount that was not added, a name
 * that is there twice. The caller tells the user what exactly.
 */
int known_files_load(const uint8_t *data, size_t size);

/**
 * known_file_open - open a file of the records in a task
 * @name: external key less its first character, so it starts with "ile["
 * @flags: of open(2)
 * @criu: gives the fds of trees
 *
 * Return: the fd, or -1 when it takes more thought than this: the slow path in Python
 * then opens the file or says why not.
 */
int known_file_open(const char *name, int flags, const struct fd_sources *criu);

/**
 * known_files_may_keep - allow fds of a mount to be kept between files
 * @allowed: known_files_drop_cached_fds will be called in every task after its last file
 */
void known_files_may_keep(bool allowed);

/** known_files_reset - drop mounts and files: another restore begins */
void known_files_reset(void);

/** known_files_drop_cached_fds - close the fds that were kept in this task, if any */
void known_files_drop_cached_fds(void);

#endif
