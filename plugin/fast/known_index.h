/* SPDX-License-Identifier: GPL-2.0-only */
/* The files of a restore, which known_files_load (known_files.h) finds in the record file. */
#ifndef CRIU_DETACHED_KNOWN_INDEX_H
#define CRIU_DETACHED_KNOWN_INDEX_H

#include "file_record.h"

/**
 * known_file_find - the record of the file with this name, as known_file_open is given it; or NULL
 *
 * Its mount is known, and its path is shorter than PATH_MAX and does not leave the mount.
 */
const struct file_record *known_file_find(const char *name);

/** known_index_count - how many files there are */
size_t known_index_count(void);

/** known_index_reset - drop all: another restore begins */
void known_index_reset(void);

#endif
