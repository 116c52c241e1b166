/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Two fds that a task keeps from file to file while it is restored: the tree of a mount, and the
 * directory of the last file in it.
 */
#ifndef CRIU_DETACHED_CACHED_FDS_H
#define CRIU_DETACHED_CACHED_FDS_H

#include "known_mounts.h"

/**
 * cached_tree - the tree of a mount; it is fetched if that of none or of another one was kept
 *
 * Return: its fd, which stays kept, or -1.
 */
int cached_tree(const struct known_mount *mount, const struct fd_sources *criu);

/** cached_mnt_id - the mount id of the tree that is kept */
uint32_t cached_mnt_id(void);

/**
 * cached_dir - a directory beneath the tree that is kept
 * @path: so many bytes; they must stay in place
 *
 * Return: its fd, which stays kept, or -1: it is asked for for the first time, or cannot be opened.
 * Then the whole path is to be gone from the tree.
 */
int cached_dir(const char *path, size_t size, const struct fd_sources *criu);

/** cached_fds_drop - close what this task keeps */
void cached_fds_drop(void);

/** cached_fds_reset - keep nothing, and close nothing: another restore begins */
void cached_fds_reset(void);

#endif
