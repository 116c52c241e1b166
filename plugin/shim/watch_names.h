/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Watches (inotify, fanotify) of inodes that CRIU finds on no mount.
 *
 * CRIU then looks for the inode by path, and asks fstatat(2) about each path that
 * irmap_scan_path_add was given (irmap_lookup, criu/irmap.c). So the plugin gives it a path
 * to search, whose question is the moment to find what is watched; then one path for each
 * watched file. That one goes into the images, and a restore opens it (get_mark_path,
 * criu/fsnotify.c).
 */
#ifndef CRIU_DETACHED_WATCH_NAMES_H
#define CRIU_DETACHED_WATCH_NAMES_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

/* What CRIU asks about first. Its paths start with a slash, its questions leave that out. */
#define WATCH_SEARCH "/criu-detached-watches"

/** watch_names_reset - forget all names; done in every init */
void watch_names_reset(void);

/**
 * watch_name_note - remember the name of a watched inode
 * @dev: of its superblock, as makedev() makes it
 * @ino: as fdinfo has it
 * @name: external key less its first character
 *
 * Return: 0, or -1 without memory.
 */
int watch_name_note(uint64_t dev, uint64_t ino, const char *name);

/**
 * watch_name_stat - what fstatat(2) says of a name
 * @name: what may be one
 * @st: the inode that it was given to; nothing, where it is of an earlier dump
 *
 * Return: whether it is such a name.
 */
bool watch_name_stat(const char *name, struct stat *st);

#endif
