/* SPDX-License-Identifier: GPL-2.0-only */
/* What tells one file from another, as statx(2) has it; for C and, through cffi, for Python. */
#ifndef CRIU_DETACHED_FILE_FACTS_H
#define CRIU_DETACHED_FILE_FACTS_H

#include <stdint.h>

struct file_facts {
	uint64_t dev; /* as makedev() makes it */
	uint64_t ino;
	uint64_t rdev;
	uint64_t size;	 /* of regular files, else 0 */
	uint32_t mnt_id; /* the reused 32-bit id, as in fdinfo and in CRIU's images */
	uint32_t mode;
	uint32_t nlink;
	uint32_t uid;
	uint32_t gid;
	uint32_t attributes; /* STATX_ATTR_*, those of 32 bits */
};

#endif
